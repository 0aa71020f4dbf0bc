import os

import pytest

from jelou_rotation.errors import UnresolvedReferences
from jelou_rotation.references import Reference, local_handlers, resolve


async def value_of(text, **options):
    reference = Reference.parse(text)
    vault = await resolve({reference: "a test"}, local_handlers(**options))
    return vault[reference].get_secret_value()


async def fault_of(text, **options):
    with pytest.raises(UnresolvedReferences) as caught:
        await value_of(text, **options)
    return str(caught.value.faults[0])


def private(path, content):
    path.write_bytes(content)
    path.chmod(0o600)
    return f"file:{path}"


@pytest.mark.parametrize("text", ["env:TOKEN", "file:/a b/ü", "file:~/x", "block:secret/a-1", "block:aws-secret/x"])
def test_a_reference_reads_back_as_it_was_written(text):
    assert str(Reference.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "s3cret", "env:", "env:1A", "env:A B", "ENV:A", "file:", "file:a\nb", "block:secret", "block:Secret/x", "x:y"],
)
def test_what_is_no_reference_is_refused_without_repeating_it(text):
    with pytest.raises(ValueError, match=r"^expected env:NAME, file:PATH or block:TYPE/NAME$"):
        Reference.parse(text)


@pytest.mark.parametrize("value", ["0123", "1e3", "true", "null", "a|b", "ñandú", "with space", "x" * 4000])
async def test_a_variable_is_text_as_it_was_set(monkeypatch, value):
    monkeypatch.setenv("TOKEN", value)

    assert await value_of("env:TOKEN") == value


@pytest.mark.parametrize(
    ("content", "value"), [(b"abc", "abc"), (b"abc\n", "abc"), (b"abc\r\n", "abc"), (b"0123\n", "0123")]
)
async def test_one_final_line_break_of_a_file_is_stripped(tmp_path, content, value):
    assert await value_of(private(tmp_path / "secret", content)) == value


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(b"abc\n\n", "line break", id="two line breaks"),
        pytest.param(b"a\nb", "line break", id="two lines"),
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"\n", "is empty", id="only a line break"),
        pytest.param(b" abc", "begins or ends with a space", id="outer space"),
        pytest.param(b"**********", "mask", id="the mask of a secret"),
        pytest.param(b"\xff\xfe", "not UTF-8", id="bytes"),
        pytest.param(b"x" * 70_000, "larger than 64 KiB", id="large"),
        pytest.param(b"a\xc2\x85b", "line break", id="a control character"),
    ],
)
async def test_a_file_that_holds_no_credential_is_refused_without_its_content(tmp_path, content, says):
    fault = await fault_of(private(tmp_path / "secret", content))

    assert says in fault
    assert "abc" not in fault


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
async def test_a_file_that_others_can_read_is_refused_unless_the_setting_says_otherwise(tmp_path, mode):
    path = tmp_path / "secret"
    reference = private(path, b"abc")
    path.chmod(mode)

    assert "chmod 600" in await fault_of(reference)
    assert await value_of(reference, allow_readable_files=True) == "abc"


async def test_a_mounted_secret_may_be_readable(tmp_path, monkeypatch):
    path = tmp_path / "secret"
    path.write_text("abc")
    path.chmod(0o644)
    monkeypatch.setattr("jelou_rotation.references._MOUNTED_SECRETS", (tmp_path,))

    assert await value_of(f"file:{path}") == "abc"


async def test_a_path_that_leaves_the_mount_is_not_a_mounted_secret(tmp_path, monkeypatch):
    (tmp_path / "mount").mkdir()
    path = tmp_path / "secret"
    path.write_text("abc")
    path.chmod(0o644)
    monkeypatch.setattr("jelou_rotation.references._MOUNTED_SECRETS", (tmp_path / "mount",))

    assert "chmod 600" in await fault_of(f"file:{tmp_path}/mount/../secret")


async def test_every_missing_reference_is_named_with_who_asks_and_no_value(monkeypatch, tmp_path):
    monkeypatch.setenv("PRESENT", "canary")
    wanted = {
        Reference("env", "PRESENT"): "authorization of prj_1",
        Reference("env", "ABSENT"): "authorization of prj_2",
        Reference("file", f"{tmp_path}/absent"): "JELOU_API_KEY",
        Reference("file", str(tmp_path)): "apiKey of prj_3",
    }

    with pytest.raises(UnresolvedReferences) as caught:
        await resolve(wanted, local_handlers())

    assert str(caught.value).splitlines() == [
        "references: 3 faults:",
        "  env:ABSENT, authorization of prj_2: this environment variable is not set;",
        f"  file:{tmp_path}, apiKey of prj_3: cannot be read ({os.strerror(21)});",
        f"  file:{tmp_path}/absent, JELOU_API_KEY: cannot be read ({os.strerror(2)})",
    ]
    assert "canary" not in str(caught.value)


async def test_a_vault_does_not_show_what_it_holds(monkeypatch):
    monkeypatch.setenv("TOKEN", "canary")
    vault = await resolve({Reference("env", "TOKEN"): "a test"}, local_handlers())

    assert "canary" not in repr(vault) + str(vars(vault))
