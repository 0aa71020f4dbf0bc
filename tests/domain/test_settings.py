import pytest

from jelou_rotation.errors import SettingsError
from jelou_rotation.references import Reference
from jelou_rotation.settings import Settings, as_reference


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("JELOU_API_KEY", "12|abc")


def faults_of(monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        Settings.load()
    return {fault.where: fault.message for fault in caught.value.faults}, str(caught.value)


def test_a_key_alone_is_enough(key):
    settings = Settings.load()

    assert settings.base_url == "https://gateway.jelou.ai/jelouapi/v1"
    assert settings.api_key.get_secret_value() == "12|abc"


def test_every_wrong_and_missing_setting_is_named_at_once_without_its_value(monkeypatch):
    faults, text = faults_of(
        monkeypatch,
        JELOU_BASE_URL="ftp://canary-host",
        JELOU_CONCURRENCY="canary-many",
        JELOU_REQUESTS_PER_SECOND="-1",
        JELOU_ALLOW_PRIVATE_HOSTS="canary-perhaps",
    )

    assert set(faults) == {
        "JELOU_BASE_URL",
        "JELOU_API_KEY",
        "JELOU_CONCURRENCY",
        "JELOU_REQUESTS_PER_SECOND",
        "JELOU_ALLOW_PRIVATE_HOSTS",
    }
    assert "canary" not in text


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        pytest.param({}, "missing", id="none"),
        pytest.param({"JELOU_API_KEY": ""}, "missing", id="empty"),
        pytest.param({"JELOU_API_KEY": "k", "JELOU_CLIENT_ID": "i", "JELOU_CLIENT_SECRET": "s"}, "not both", id="both"),
        pytest.param({"JELOU_API_KEY": "k", "JELOU_CLIENT_ID": "i"}, "not both", id="key and half a pair"),
        pytest.param({"JELOU_CLIENT_ID": "i"}, "go together", id="half a pair"),
        pytest.param({"JELOU_API_KEY": "a\nb"}, "line break", id="two lines"),
        pytest.param({"JELOU_API_KEY": "env:not a name"}, "looks like a reference", id="a reference mistyped"),
    ],
)
def test_exactly_one_way_to_authenticate_is_accepted(monkeypatch, variables, says):
    faults, _ = faults_of(monkeypatch, **variables)

    assert says in faults["JELOU_API_KEY"]


@pytest.mark.parametrize(
    "url",
    [
        "http://gateway.jelou.ai/jelouapi/v1",
        "http://10.0.0.1/v1",
        "https://user:canary@gateway.jelou.ai/v1",
        "https://gateway.jelou.ai/v1?token=canary",
        "https://gateway.jelou.ai/v1#x",
        "https://",
        "canary-host",
        "https://[::1",
        "https://host:port",
    ],
)
def test_a_base_url_that_could_leak_the_key_is_refused(monkeypatch, key, url):
    faults, text = faults_of(monkeypatch, JELOU_BASE_URL=url)

    assert set(faults) == {"JELOU_BASE_URL"}
    assert "canary" not in text


@pytest.mark.parametrize("url", ["http://127.0.0.1:4010/v1", "http://localhost:1/v1/", "http://[::1]:9/v1"])
def test_plain_http_is_accepted_on_loopback(monkeypatch, key, url):
    monkeypatch.setenv("JELOU_BASE_URL", url)

    assert Settings.load().base_url == url.rstrip("/")


def test_a_secret_may_be_a_reference(monkeypatch):
    monkeypatch.setenv("JELOU_API_KEY", "block:secret/jelou-key")

    assert as_reference(Settings.load().secrets()["JELOU_API_KEY"]) == Reference("block", "secret/jelou-key")


def test_settings_are_read_from_a_secrets_directory_and_a_dot_env_file(monkeypatch, tmp_path):
    folder = tmp_path / "secrets"
    folder.mkdir()
    (folder / "jelou_api_key").write_text("from-a-file\n")
    monkeypatch.setenv("JELOU_SECRETS_DIR", str(folder))
    (tmp_path / ".env").write_text("JELOU_CONCURRENCY=7\nOTHER=1\n")

    settings = Settings.load()

    assert settings.api_key.get_secret_value() == "from-a-file"
    assert settings.concurrency == 7


def test_no_repr_shows_a_secret(monkeypatch):
    monkeypatch.setenv("JELOU_CLIENT_ID", "canary-id")
    monkeypatch.setenv("JELOU_CLIENT_SECRET", "canary-secret")

    assert "canary" not in repr(Settings.load())
