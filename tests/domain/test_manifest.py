import codecs
import hashlib
import json
from pathlib import Path

import fsspec
import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from jelou_rotation import manifest
from jelou_rotation.errors import ManifestError
from jelou_rotation.manifest import COLUMNS, MAX_BYTES, display_name, dump, json_schema, load
from jelou_rotation.references import EXPECTED, Reference
from jelou_rotation.row import AuthType, Row

EXAMPLES = Path(__file__).parents[2] / "deployments" / "manifests"
HEADER = "projectId,webhookUrl,authType,authorization,apiKey,tags\n"
ONE_ROW = "projects:\n  a: {authType: no_auth}\n"
NAMES = ", ".join(COLUMNS)
SECRET = "Planted-S3cret:x9"


def faults_of(source, **options):
    with pytest.raises(ManifestError) as caught:
        load(source, **options)
    return [str(fault).removeprefix("pasted text, ") for fault in caught.value.faults]


def ids_of(source):
    return [row.project_id for row in load(source).rows]


def with_url(url):
    return f"projects:\n  a:\n    webhookUrl: {json.dumps(url)}\n"


# What loads


def test_a_row_has_the_settings_of_its_project():
    text = """projects:
  acme:
    webhookUrl: https://x.example/hook
    authType: api_key
    authorization: file:/run/secrets/acme
    apiKey: block:secret/acme-key
    tags: [pilot, north]
"""
    assert load(text).rows == (
        Row(
            project_id="acme",
            webhook_url="https://x.example/hook",
            auth_type=AuthType.API_KEY,
            authorization=Reference("file", "/run/secrets/acme"),
            api_key=Reference("block", "secret/acme-key"),
            tags=("pilot", "north"),
        ),
    )


def test_a_reference_needs_no_quotes_between_braces():
    (row,) = load("projects:\n  a: {authType: bearer, authorization: env:A}\n").rows
    assert row.authorization == Reference("env", "A")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("projects:\n- projectId: a\n  authType: no_auth\n", id="a list"),
        pytest.param('{"projects": {"a": {"authType": "no_auth"}}}\n', id="JSON"),
        pytest.param("---\n$schema: x.json\n" + ONE_ROW, id="a document start and $schema"),
        pytest.param("\ufeff" + ONE_ROW, id="a byte order mark"),
        pytest.param("defaults: {authType: no_auth}\nprojects:\n  a:\n", id="all from the defaults"),
        pytest.param("projects: {a: {authType: no_auth, webhookUrl: ~, apiKey: }}\n", id="empty is not set"),
        pytest.param(ONE_ROW.replace("\n", "\r\n"), id="CRLF"),
        pytest.param("projectId,authType\na,no_auth\n", id="pasted CSV"),
        pytest.param("projectId\tauthType\na\tno_auth\n", id="pasted cells"),
        pytest.param("projectId;authType\n\n;\na;no_auth\n;;;\n", id="blank lines"),
        pytest.param("# projectId, authType, tags\n" + ONE_ROW, id="a comment that looks like a header"),
        pytest.param("projectId,authType\n\u00a0a ,no_auth\u00a0\n", id="no-break spaces"),
        pytest.param("sep=;\r\nprojectId;authType\r\na;no_auth\r\n", id="sep="),
        pytest.param(" PROJECTID , authtype ,,\n a , no_auth ,,\n", id="header in any case, empty columns"),
        pytest.param('"projectId","authType"\r"a","no_auth"\r', id="quoted, lone CR"),
        pytest.param('projectId, authType\n"a", "no_auth"\n', id="a space before a quote"),
        pytest.param("authType,projectId,tags\nno_auth,a\n", id="columns in any order, a short record"),
    ],
)
def test_these_spellings_load_to_the_same_row(text):
    assert load(text).rows == (Row(project_id="a", auth_type=AuthType.NO_AUTH),)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_spreadsheets_encodings_load(tmp_path, encoding):
    path = tmp_path / "customers.csv"
    path.write_bytes("projectId;authType\r\nMünchen;no_auth\r\n".encode(encoding))
    assert ids_of(str(path)) == ["München"]


@pytest.mark.parametrize(
    "name", ["0123", "yes", "null", "1e3", "=cmd()", "<script>", "a b", "ñandú", "a/b", "x" * 200, "<", "1.0"]
)
def test_a_project_id_is_the_text_that_was_typed(name):
    assert ids_of(f"projects:\n  {name}: {{authType: no_auth}}\n") == [name]
    assert ids_of(f"projectId,authType\n{name},no_auth\n") == [name]


def test_defaults_fill_what_a_row_leaves_out_and_tags_are_joined():
    text = """defaults:
  webhookUrl: https://shared.example/hook
  authType: bearer
  authorization: env:SHARED
  apiKey: env:KEY
  tags: [all]
projects:
  a:
  b: {authorization: "env:OWN", tags: [pilot, all]}
"""
    first, second = load(text).rows
    assert (first.webhook_url, str(first.authorization), str(first.api_key)) == (
        "https://shared.example/hook",
        "env:SHARED",
        "env:KEY",
    )
    assert (first.tags, str(second.authorization)) == (("all",), "env:OWN")
    assert second.tags == ("all", "pilot")


def test_a_row_without_authentication_does_not_inherit_a_credential():
    text = 'defaults: {authType: bearer, authorization: "env:A"}\nprojects:\n  a: {authType: no_auth}\n'
    assert load(text).rows[0].authorization is None


@pytest.mark.parametrize("cell", ["x y", "x;y", '"x,y"', '"x\ny"', '" x ,; y "', '"x y x"'])
def test_tags_in_a_cell_are_separated_by_spaces_commas_or_semicolons(cell):
    assert load(f"projectId,authType,tags\na,no_auth,{cell}\n").rows[0].tags == ("x", "y")


def test_ten_thousand_rows_load():
    rows = "".join(f"  p{n}:\n    webhookUrl: https://x.example/{n}\n    tags: [a]\n" for n in range(10_000))
    assert len(load("projects:\n" + rows).rows) == 10_000


# Where it is read from


@pytest.mark.parametrize("name", ["m.yaml", "m.yml", "m.json", "m.txt", "m"])
def test_a_file_is_named_without_its_folder_and_has_the_hash_of_its_bytes(tmp_path, name):
    path = tmp_path / name
    path.write_text(ONE_ROW)
    loaded = load(str(path))
    assert (loaded.name, loaded.sha256) == (name, hashlib.sha256(ONE_ROW.encode()).hexdigest())


@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "M.CSV", "m.txt", "m"])
def test_csv_is_known_by_its_suffix_or_its_header(tmp_path, name):
    path = tmp_path / name
    path.write_text("projectId\tauthType\na\tno_auth\n")
    assert ids_of(str(path)) == ["a"]


def test_the_suffix_decides_before_the_content(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text("projectId,authType\na,no_auth\n")
    assert faults_of(str(path)) == ["m.yaml, line 1, column 1: expected projects: at the top"]


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("m.csv", "project,auth\n", f"m.csv, line 1: no column projectId, expected {NAMES}"),
        ("m.txt", "projectId\na\n", "m.txt, line 1, column 1: expected projects: at the top"),
    ],
)
def test_one_known_column_is_a_table_only_with_the_suffix_of_one(tmp_path, name, text, fault):
    path = tmp_path / name
    path.write_text(text)
    assert faults_of(str(path))[0] == fault


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_any_url_that_fsspec_knows_is_read(tmp_path, scheme):
    url = f"{scheme}://{tmp_path}/remote.csv"
    with fsspec.open(url, "w") as file:
        file.write("projectId,authType\na,no_auth\n")
    assert (load(url).name, ids_of(url)) == ("remote.csv", ["a"])


def test_an_order_for_a_project_that_is_not_there_is_refused():
    manifest = load("projects:\n  acme: {authType: no_auth, tags: [pilot]}\n")

    manifest.require(["acme"])
    with pytest.raises(ManifestError) as caught:
        manifest.require(["acne", "tag:pilot"])

    assert [str(fault) for fault in caught.value.faults] == [
        "pasted text, order: 'acne' matches no row, did you mean acme?",
        "pasted text, order: 'tag:pilot' matches no row",
    ]


def test_an_address_with_a_password_is_refused_before_it_is_asked():
    with pytest.raises(ManifestError) as caught:
        load(f"https://user:{SECRET}@127.0.0.1:1/eu.yaml")

    assert str(caught.value.faults[0]) == "eu.yaml: a user or password does not belong in the address of a manifest"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/srv/customers/eu.yaml", "eu.yaml"),
        ("s3://bucket/folder/eu.csv", "eu.csv"),
        (f"https://user:{SECRET}@host/eu.yaml?sig={SECRET}#{SECRET}", "eu.yaml"),
        (f"s3://user:{SECRET}@bucket", "manifest"),
        (f"https://user:{SECRET}#x@host/eu.yaml", "eu.yaml"),
        (f"https://user:{SECRET}?x@host/", "manifest"),
        ("https://", "manifest"),
        ("", "manifest"),
        ("projects:\n", "pasted text"),
    ],
)
def test_the_name_people_see_is_the_files_alone(source, name):
    assert display_name(source) == name


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("/nowhere/x.yaml", "x.yaml: not found"),
        ("memory://nowhere/x.csv", "x.csv: not found"),
        (str(EXAMPLES), "manifests: is a folder, not a file"),
        (f"nosuch://h/x.yaml?sig={SECRET}", "x.yaml: not a usable path, URL or text"),
        ("a\ud800\n", "pasted text: not a usable path, URL or text"),
    ],
)
def test_what_cannot_be_read_is_said_in_words(source, fault):
    assert faults_of(source) == [fault]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(SECRET), "may not be read by this user"),
        (ImportError(SECRET), "the fsspec driver for this kind of URL is not installed"),
        (RuntimeError(SECRET), "cannot be read (RuntimeError)"),
    ],
)
def test_a_drivers_own_words_are_not_passed_on(monkeypatch, error, words):
    def refuse(*_):
        raise error

    monkeypatch.setattr(manifest.fsspec, "open", refuse)
    with pytest.raises(ManifestError) as caught:
        load("s3://bucket/x.csv")
    assert [str(fault) for fault in caught.value.faults] == [f"x.csv: {words}"]
    assert caught.value.__context__ is None


def test_a_file_that_comes_in_small_pieces_is_read_whole(monkeypatch):
    class Slow:
        def __init__(self):
            self.rest = list(ONE_ROW.encode())

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def read(self, _size):
            return bytes([self.rest.pop(0)]) if self.rest else b""

    monkeypatch.setattr(manifest.fsspec, "open", lambda *_: Slow())
    assert ids_of("https://x.example/m.yaml") == ["a"]


def test_a_manifest_over_the_limit_is_refused(monkeypatch):
    assert MAX_BYTES == 32 * 1024 * 1024
    monkeypatch.setattr(manifest, "MAX_BYTES", len(ONE_ROW))
    assert ids_of(ONE_ROW) == ["a"]
    assert faults_of(ONE_ROW + "\n") == ["pasted text: larger than 32 MiB, the most a manifest may be"]


@pytest.mark.parametrize("data", [b"projectId,authType\nM\xfcnchen,no_auth\n", b"x\np\0"])
def test_other_encodings_are_refused_with_the_line(tmp_path, data):
    path = tmp_path / "m.csv"
    path.write_bytes(data)
    assert faults_of(str(path)) == ["m.csv, line 2: not UTF-8 text: save it as UTF-8 (in Excel: CSV UTF-8)"]


def test_half_a_utf_16_character_is_refused(tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes(codecs.BOM_UTF16_LE + b"a")
    assert "not UTF-8 text" in faults_of(str(path))[0]


# What is refused


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        pytest.param("\n", ["pasted text: no rows: a manifest names at least one project"], id="empty"),
        pytest.param(
            "projects: {}\n", ["pasted text: no rows: a manifest names at least one project"], id="no projects"
        ),
        pytest.param("- a\n", ["line 1, column 1: expected projects: at the top"], id="a list at the top"),
        pytest.param(
            "projects: x\n",
            ["line 1, column 11, projects: expected one key for each projectId, or a list"],
            id="projects is a text",
        ),
        pytest.param(
            "project:\n" + ONE_ROW,
            ["line 1, column 1: unknown key, expected defaults or projects"],
            id="unknown at the top",
        ),
        pytest.param(
            "projects:\n  a: env:A\n",
            ["line 2, column 6: expected settings such as webhookUrl and authType"],
            id="settings are a text",
        ),
        pytest.param(
            "projects:\n  a:\n    webhokUrl: x\n    note: {a: b}\n    authType: no_auth\n",
            [
                "line 3, column 5: unknown key 'webhokUrl', did you mean webhookUrl?",
                f"line 4, column 5: unknown key, expected {NAMES}",
            ],
            id="unknown keys",
        ),
        pytest.param(
            "projects:\n  a: {authType: no_auth, webhook_url: b}\n",
            ["line 2, column 26: unknown key 'webhook_url', did you mean webhookUrl?"],
            id="names inside the code are not those of the file",
        ),
        pytest.param(
            'projects:\n  a: {authType: no_auth, "webhook\\u202eUrl": b}\n',
            [f"line 2, column 26: unknown key, expected {NAMES}"],
            id="an unknown key that is no word is not quoted",
        ),
        pytest.param(
            "projects:\n  a: {authType: no_auth, projectId: b}\n",
            ["line 2, column 37, projectId: is the key of this row already"],
            id="projectId twice",
        ),
        pytest.param(
            "defaults: {projectId: b}\n" + ONE_ROW,
            ["line 1, column 23, projectId: belongs under projects"],
            id="projectId in the defaults",
        ),
        pytest.param(
            "projects:\n- authType: no_auth\n", ["line 2, column 3, projectId: no projectId"], id="no projectId"
        ),
        pytest.param(
            "projects:\n  a: {authType: [x], tags: x, webhookUrl: {a: b}}\n",
            [
                "line 2, column 17, authType: expected a text",
                "line 2, column 28, tags: expected a list such as [north, pilot]",
                "line 2, column 43, webhookUrl: expected a text",
            ],
            id="values of another shape",
        ),
        pytest.param(
            "projects:\n  a: {authType: no_auth, tags: [x y, '']}\n",
            ["line 2, column 32, tags: a tag is one word without commas or semicolons"],
            id="tags of two words or none",
        ),
        pytest.param(
            "projects:\n  a: {authType: no_auth}\n  'a ': {authType: no_auth}\n",
            ["line 3, column 3, projectId: duplicate projectId, first in line 2"],
            id="duplicate projectId",
        ),
        pytest.param(
            "projects: {a: {authType: no_auth}, a: {authType: no_auth}}\n",
            ["line 1, column 36, projectId: duplicate projectId, first in line 1"],
            id="duplicate in one line",
        ),
        pytest.param(
            "projects:\n  a:\n    authType: no_auth\n    authType: no_auth\n",
            ["line 4, column 5, authType: duplicate key, first in line 3"],
            id="duplicate key",
        ),
        pytest.param(
            ONE_ROW + "projects:\n", ["line 3, column 1, projects: duplicate key, first in line 1"], id="two projects"
        ),
        pytest.param(
            ONE_ROW + "---\n" + ONE_ROW,
            ["line 3, column 1: a manifest is one document: remove the line ---"],
            id="two documents",
        ),
        pytest.param(
            "projects:\n  a: &x\n    authType: no_auth\n  b: *x\n  c:\n    <<: *x\n  d:\n",
            [
                "line 2, column 6: anchors are not used here: put what rows share under defaults",
                "line 4, column 6: aliases are not used here: put what rows share under defaults",
                "line 6, column 5: merge keys are not used here: put what rows share under defaults",
                "line 6, column 9: aliases are not used here: put what rows share under defaults",
                "line 7, column 3: changes nothing: give it a webhookUrl or an authType",
            ],
            id="anchors, aliases and merge keys",
        ),
        pytest.param(
            "defaults: *x\nprojects:\n  a:\n",
            ["line 1, column 11: aliases are not used here: put what rows share under defaults"],
            id="rows are not blamed for unreadable defaults",
        ),
        pytest.param(
            "projects:\n  a: {authType: !!str no_auth}\n  b: !x {authType: no_auth}\n",
            [
                "line 2, column 17: YAML tags are not used here: every value is a text",
                "line 3, column 6: YAML tags are not used here: every value is a text",
            ],
            id="YAML tags",
        ),
        pytest.param("projects:\n  ? [a]\n  : b\n", ["line 2, column 5: a key must be a text"], id="a list as key"),
        pytest.param(
            "projects:\n  a: " + "[" * 100_000 + "\n",
            ["line 2, column 8: nested deeper than a manifest needs"],
            id="a nesting bomb",
        ),
        pytest.param(
            "projects:\n" + "".join(" " * n + "a:\n" for n in range(1, 2000)),
            ["line 5, column 5: nested deeper than a manifest needs"],
            id="a nesting bomb in blocks",
        ),
        pytest.param(
            "projects:\n  a: 'x\n  b: y\n",
            [
                (
                    "line 4, column 1: not valid YAML: found unexpected end of stream"
                    " while scanning a quoted scalar that starts in line 2"
                )
            ],
            id="an open quote",
        ),
        pytest.param(
            "projects:\n  a: b: c\n",
            ["line 2, column 7: not valid YAML: mapping values are not allowed in this context"],
            id="a syntax error",
        ),
        pytest.param(
            "projects:\n  a\u2028b: {authType: no_auth}\n  b: \x07\n",
            ["line 2, column 4: control character U+2028", "line 3, column 6: control character U+0007"],
            id="characters YAML swallows",
        ),
    ],
)
def test_yaml_is_refused_with_line_and_column(text, faults):
    assert faults_of(text) == faults


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        pytest.param(HEADER, ["pasted text: no rows: a manifest names at least one project"], id="no rows"),
        pytest.param(HEADER + ",,no_auth\n", ["line 2, projectId: no projectId"], id="no projectId"),
        pytest.param(
            "authType,tags\nno_auth,x\n",
            [f"line 1: no column projectId, expected {NAMES}"],
            id="no column projectId",
        ),
        pytest.param(
            "\nprojectId,webhokUrl,owner,authType\na,b,,no_auth\nc,,d,no_auth\n",
            [
                "line 2, column 2: unknown column 'webhokUrl', did you mean webhookUrl?",
                f"line 2, column 3: unknown column, expected {NAMES}",
            ],
            id="unknown columns, once each",
        ),
        pytest.param(
            "projectId,authType,AUTHTYPE\na,no_auth,no_auth\n",
            ["line 1, authType: duplicate column"],
            id="a column twice",
        ),
        pytest.param(
            "projectId,authType,,\na,no_auth,,\nb,no_auth,x\nc,no_auth,,,x\n",
            ["line 3: more cells than the header", "line 4: more cells than the header"],
            id="more cells than the header",
        ),
        pytest.param(
            HEADER + 'a,,no_auth,,,"x\ny"\n\nb,,no_auth,,,"x\r\ny"\nc,,nope\n',
            ["line 7, authType: expected bearer, api_key, basic or no_auth"],
            id="lines are counted through quoted line breaks",
        ),
        pytest.param(
            HEADER + 'a,,nope\nb,"https\nc,,no_auth\n',
            [
                "line 2, authType: expected bearer, api_key, basic or no_auth",
                "line 3: a quote in this record is not closed or not doubled",
            ],
            id="an open quote",
        ),
        pytest.param(
            HEADER + "a,,no_auth\n a ,,no_auth\na,,nope\n",
            [
                "line 3, projectId: duplicate projectId, first in line 2",
                "line 4, projectId: duplicate projectId, first in line 2",
                "line 4, authType: expected bearer, api_key, basic or no_auth",
            ],
            id="duplicate projectIds",
        ),
        pytest.param(
            "sep=;\nprojectId;authType\na;nope\n",
            ["line 3, authType: expected bearer, api_key, basic or no_auth"],
            id="sep= is a line",
        ),
    ],
)
def test_csv_is_refused_with_the_line(text, faults):
    assert faults_of(text) == faults


REFERENCE = "expected env:NAME, file:PATH, block:TYPE/NAME or generate"


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({}, "line 2, column 3: changes nothing: give it a webhookUrl or an authType"),
        ({"tags": ["x"]}, "line 2, column 3: changes nothing: give it a webhookUrl or an authType"),
        ({"authType": "Bearer"}, "authType: expected bearer, api_key, basic or no_auth"),
        ({"authType": "bearer"}, "line 2, column 3, authorization: authType bearer needs an authorization"),
        ({"authType": "no_auth", "authorization": "env:A"}, "authorization: authType no_auth takes no authorization"),
        ({"authorization": "env:A"}, "authorization: needs an authType beside it"),
        ({"authType": "basic", "authorization": "Basic abc"}, f"authorization: {REFERENCE}"),
        ({"authType": "basic", "authorization": "generate"}, "authType basic needs a user to generate a password for"),
        (
            {"authType": "bearer", "authorization": "generate", "length": "16"},
            "16 characters of urlsafe hold 96 bits of 128: use a length of at least 22",
        ),
        (
            {"authType": "bearer", "authorization": "generate", "length": "8"},
            "length: expected a number greater than or equal to 16",
        ),
        ({"authType": "bearer", "authorization": "generate", "length": "long"}, "length: expected a whole number"),
        ({"authType": "no_auth", "overlap": "a day"}, "overlap: expected a time such as 90m, 24h or 30d"),
        ({"authType": "no_auth", "publishTo": "env:A"}, "publishTo: expected block:TYPE/NAME"),
        ({"authType": "no_auth", "probe": "maybe"}, "probe: expected required, best_effort or off"),
        ({"authType": "no_auth", "apiKey": "12|abc"}, f"apiKey: {EXPECTED}"),
        ({"authType": "no_auth", "apiKey": "file:a\u0085"}, "apiKey: control character U+0085"),
        ({"authType": "no_auth", "tags": ["a\u202e"]}, "tags: control character U+202E"),
        ({"authType": "no_auth\u2069"}, "authType: control character U+2069"),
    ],
    ids=str,
)
def test_a_row_that_cannot_be_meant_is_refused(settings, fault):
    lines = [f"    {key}: {json.dumps(value)}\n" for key, value in settings.items()]
    (found,) = faults_of("projects:\n  a:\n" + "".join(lines))
    assert found.endswith(fault)


@pytest.mark.parametrize(
    ("project_id", "message"),
    [
        (".", "cannot be used in a URL path"),
        ("..", "cannot be used in a URL path"),
        ("//", "cannot be used in a URL path"),
        ("x" * 201, "longer than 200 characters"),
        ("a\tb", "control character U+0009"),
        ("a\nb", "control character U+000A"),
        ("a\u2028", "control character U+2028"),
        ("\u2066a", "control character U+2066"),
        ("a\u0085b", "control character U+0085"),
        ("a\x7fb", "control character U+007F"),
    ],
    ids=ascii,
)
def test_a_project_id_that_cannot_be_an_address_is_refused(project_id, message):
    escaped = json.dumps(project_id)
    assert faults_of(f"projects:\n  {escaped}: {{authType: no_auth}}\n") == [f"line 2, column 3, projectId: {message}"]


PRIVATE = "the host is not public (for trials: JELOU_ALLOW_PRIVATE_HOSTS)"
UNREADABLE = "the host or port of the URL cannot be read"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://x.example", "expected an https:// URL"),
        ("ftp://x.example", "expected an https:// URL"),
        ("x.example/hook", "expected an https:// URL"),
        ("https:///hook", "the URL has no host"),
        ("https://user@x.example", "a user or password does not belong in a URL: use authorization"),
        ("https://:pass@x.example", "a user or password does not belong in a URL: use authorization"),
        ("https://x.example/#", "a webhook URL has no fragment (#)"),
        ("https://x.example/a b", "a URL holds no spaces or backslashes"),
        ("https://x.example\\@y.example", "a URL holds no spaces or backslashes"),
        ("https://x.example/\u202ea", "control character U+202E"),
        ("https://x.example:0", UNREADABLE),
        ("https://x.example:65536", UNREADABLE),
        ("https://x.example:port", UNREADABLE),
        ("https://[::1", UNREADABLE),
        ("https://[zz::]", UNREADABLE),
        ("https://a..example", UNREADABLE),
        ("https://%6cocalhost", UNREADABLE),
        ("https://local\u00adhost", UNREADABLE),
        *(
            (f"https://{host}", PRIVATE)
            for host in (
                "localhost",
                "LOCALHOST.",
                "a.localhost",
                "panel.local",
                "panel.internal",
                "127.0.0.1",
                "127.1",
                "0x7f.1",
                "2130706433",
                "017700000001",
                "\uff11\uff12\uff17.0.0.1",
                "127\u30020\u30020\u30021",
                "10.0.0.1:8443",
                "172.16.0.1",
                "192.168.0.1",
                "100.64.0.1",
                "169.254.169.254",
                "0.0.0.0",
                "224.0.0.1",
                "239.1.1.1",
                "240.0.0.1",
                "255.255.255.255",
                "[::]",
                "[::1]",
                "[fe80::1]",
                "[fc00::1]",
                "[ff0e::1]",
                "[::ffff:10.0.0.1]",
                "[2002:7f00:1::]",
                "[64:ff9b::7f00:1]",
            )
        ),
    ],
    ids=ascii,
)
def test_a_webhook_that_jelou_cannot_or_must_not_reach_is_refused(url, message):
    assert faults_of(with_url(url)) == [f"line 3, column 17, webhookUrl: {message}"]


@pytest.mark.parametrize(
    "url",
    [
        "https://x.example",
        "https://x.example:8443/hook?a=b",
        "https://münchen.example/ü",
        "https://8.8.8.8/hook",
        "https://[2606:4700::1111]/hook",
        "https://[::ffff:8.8.8.8]/hook",
        "https://internal.example",
        "https://mylocalhost.example",
    ],
)
def test_a_public_webhook_loads_as_written(url):
    assert load(with_url(url)).rows[0].webhook_url == url


@pytest.mark.parametrize("url", ["http://127.0.0.1:8080", "http://localhost/x", "https://10.0.0.1", "http://[::1]:1"])
def test_private_hosts_load_for_trials_also_over_http(url):
    assert load(with_url(url), allow_private_hosts=True).rows[0].webhook_url == url


def test_a_public_host_needs_https_in_trials_too():
    assert faults_of(with_url("http://x.example"), allow_private_hosts=True) == [
        "line 3, column 17, webhookUrl: expected an https:// URL"
    ]


def test_every_fault_is_said_at_once_by_line():
    text = """defaults: {apiKey: literal}
projects:
  a:
    webhookUrl: http://x.example
    authType: basic
  b:
    authType: nope
    authorization: literal
"""
    assert faults_of(text) == [
        f"line 1, column 20, apiKey: {EXPECTED}",
        "line 3, column 3, authorization: authType basic needs an authorization",
        "line 4, column 17, webhookUrl: expected an https:// URL",
        "line 7, column 15, authType: expected bearer, api_key, basic or no_auth",
        f"line 8, column 20, authorization: {REFERENCE}",
    ]


def test_after_fifty_faults_the_rest_is_counted():
    faults = faults_of(HEADER + "".join(f"p{n},,nope\n" for n in range(62)))
    assert len(faults) == 50
    assert faults[-1] == "line 51, authType: expected bearer, api_key, basic or no_auth (and 12 more)"


# What an error must not show


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(template.replace("@", SECRET), id=ascii(template))
        for template in [
            "projects:\n  '@': {}\n  '@': {authType: '@'}\n",
            "projects:\n  a: '@'\n",
            "projects: '@'\n",
            "'@'\n",
            "'@': '@'\nprojects: {a: {'@': '@', '@ ': ['@']}}\n",
            "projects:\n  a:\n    '@': x\n    webhook@: x\n    '@': y\n",
            "projects:\n  a: {projectId: '@', authType: ['@'], tags: '@', webhookUrl: {'@': '@'}}\n",
            "projects:\n  a: {authType: '@', authorization: '@', apiKey: '@', tags: ['@ @', '@;'], webhookUrl: '@'}\n",
            "defaults: {authType: '@', authorization: '@', '@': '@'}\nprojects:\n  a:\n",
            "projects:\n- '@'\n- projectId: '@'\n- projectId: '@'\n- ['@']\n",
            "projects:\n  a: {webhookUrl: 'https://u:@@x.example'}\n  b: {webhookUrl: 'https://x:@'}\n",
            "projects:\n  a: {webhookUrl: 'https://[@]'}\n  b: {webhookUrl: 'http://x.example/@'}\n",
            "projects:\n  a: &@ x\n  b: *@\n  c: !@ x\n",
            "projects:\n  a: !<@> x\n  ? ['@']\n  : '@'\n",
            "%TAG !@! @\n---\nprojects: {a: !@!x y}\n",
            "projects:\n  a: '@\n",
            "projects:\n  a: @: @: @\n",
            'projects:\n  a: "\\@"\n',
            "projects:\n  a: {@\n",
            "projects:\n  a: *x\n@\n",
            "projects:\n  @\x07: x\n",
            "projects: {a: {apiKey: '@'}}\n---\n@\n",
            HEADER + "@,@,@,@,@,@\n@,,,@\n",
            HEADER + "a,,no_auth,,,x,@\n",
            HEADER + 'a,"@\n',
            HEADER + 'a,"@"@,b\n',
            "projectId,@,authType,@\na,@,no_auth,@\n",
            "projectId,webhook@,authType\na,@,no_auth\n",
            "@,authType,tags\na,no_auth,x\n",
            "sep=@\nprojectId,authType\na,@\n",
        ]
    ],
)
def test_a_credential_in_the_wrong_place_is_never_shown(text):
    with pytest.raises(ManifestError) as caught:
        load(text)
    shown = str(caught.value) + repr(caught.value) + repr(caught.value.faults)
    assert SECRET not in shown
    assert "S3cret" not in shown
    assert caught.value.__context__ is None


def test_a_file_that_is_not_text_is_not_kept_in_the_error(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_bytes(SECRET.encode() + b"\xff")
    with pytest.raises(ManifestError) as caught:
        load(str(path))
    assert SECRET not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_row_made_in_code_neither_shows_what_it_refuses_nor_changes():
    with pytest.raises(ValidationError) as caught:
        Row(project_id="a", auth_type=AuthType.BASIC, authorization=SECRET)
    assert SECRET not in str(caught.value) + repr(caught.value)
    row = Row(project_id="a", auth_type=AuthType.NO_AUTH)
    with pytest.raises(ValidationError, match="frozen"):
        row.project_id = "b"


# Selecting, writing and the schema


SELECTABLE = """projects:
  prj_1: {authType: no_auth, tags: [pilot]}
  prj_2: {authType: no_auth, tags: [pilot, north]}
  prj_3: {authType: no_auth, tags: [north]}
  two words: {authType: no_auth}
"""


@pytest.mark.parametrize(
    ("only", "chosen"),
    [
        ([], ["prj_1", "prj_2", "prj_3", "two words"]),
        (["prj_3", " prj_1 "], ["prj_1", "prj_3"]),
        (["tag:north"], ["prj_2", "prj_3"]),
        (["tag:pilot", "prj_2", "two words"], ["prj_1", "prj_2", "two words"]),
    ],
    ids=str,
)
def test_rows_are_selected_by_project_or_tag_in_the_manifests_order(only, chosen):
    whole = load(SELECTABLE)
    selected = whole.select(only)
    assert [row.project_id for row in selected.rows] == chosen
    assert (selected.name, selected.sha256) == (whole.name, whole.sha256)


def test_a_selection_that_matches_nothing_is_refused_with_the_nearest():
    with pytest.raises(ManifestError) as caught:
        load(SELECTABLE).select(["prj_1", "prj-2", "tag:pilto", "", "no match here", "zzz"])
    assert [str(fault) for fault in caught.value.faults] == [
        "pasted text, only: 'prj-2' matches no row, did you mean prj_2?",
        "pasted text, only: 'tag:pilto' matches no row, did you mean tag:pilot?",
        "pasted text, only: an entry matches no row",
        "pasted text, only: 'zzz' matches no row",
    ]


def test_a_long_selection_that_matches_nothing_is_counted():
    with pytest.raises(ManifestError) as caught:
        load(SELECTABLE).select([f"zzz{n}" for n in range(53)])
    assert len(caught.value.faults) == 50
    assert str(caught.value).endswith("'zzz49' matches no row (and 3 more)")


def test_what_is_dumped_loads_to_the_same_rows():
    names = ["0123", "null", "~", "<<", "=", "- x", "a: b #c", "'q\"", "ñ 😀", "yes", "k" * 200, "{a", "\\n"]
    rows = tuple(
        Row(
            project_id=name,
            webhook_url="https://x.example/ü?a=b",
            auth_type=AuthType.BEARER,
            authorization=Reference("file", "/run/se crets/ü: #x"),
            api_key=Reference("env", "KEY"),
            tags=("yes", "0", "#x"),
        )
        for name in names
    )
    assert load(dump(rows)).rows == rows
    sparse = (Row(project_id="a", webhook_url="https://x.example"),)
    assert load(dump(sparse)).rows == sparse


def test_nothing_dumped_is_a_manifest_without_rows():
    assert faults_of(dump([])) == ["pasted text: no rows: a manifest names at least one project"]


def schema_faults(text):
    checker = jsonschema.Draft202012Validator(json_schema())
    return list(checker.iter_errors(yaml.safe_load(text)))


def test_the_schema_is_valid_and_the_one_beside_the_examples():
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert json.loads((EXAMPLES / "manifest.schema.json").read_text()) == json_schema()


@pytest.mark.parametrize(
    "text",
    [
        ONE_ROW,
        "projects:\n- projectId: 4711\n  webhookUrl: https://x.example\n",
        "defaults: {authType: no_auth}\nprojects:\n  a:\n  b: {webhookUrl: }\n",
    ],
)
def test_the_schema_takes_what_loads(text):
    assert load(text).rows
    assert not schema_faults(text)


@pytest.mark.parametrize(
    "text",
    [
        "projects: {}\n",
        "defaults: {authType: no_auth}\n",
        "projects: {a: {authType: nope}}\n",
        'projects: {a: {webhookUrl: "http://x.example"}}\n',
        "projects: {a: {webhokUrl: x}}\n",
        "projects: [{authType: no_auth}]\n",
        "project: {a: {authType: no_auth}}\n",
        "defaults: {projectId: a, authType: no_auth}\nprojects:\n  a:\n",
    ],
)
def test_the_schema_refuses_what_is_refused(text):
    assert faults_of(text)
    assert schema_faults(text)


@pytest.mark.parametrize(
    "text",
    [
        "env:A_1",
        "env:1",
        "env:",
        "file:/a b",
        "file:",
        "block:a/b-1",
        "block:A/b",
        "block:a",
        "generate",
        "x env:A",
        "env:A b",
        "Env:A",
    ],
)
def test_the_schema_and_the_references_agree(text):
    try:
        Reference.parse(text)
        is_reference = True
    except ValueError:
        is_reference = False
    settings = {"authType": "basic", "authorization": text, "apiKey": text}
    assert (not schema_faults(json.dumps({"projects": {"a": settings}}))) is is_reference


def test_every_setting_has_hover_help():
    properties = json_schema()["$defs"]["row"]["properties"]
    assert list(properties) == list(COLUMNS)
    assert all(one["description"] for one in properties.values())


def test_the_examples_load_to_the_same_rows_and_keep_the_schema():
    in_yaml, in_csv = load(str(EXAMPLES / "example.yaml")), load(str(EXAMPLES / "example.csv"))
    assert in_yaml.rows == in_csv.rows
    assert {row.authorization.scheme for row in in_yaml.rows if row.authorization} == {"env", "file", "block"}
    assert not schema_faults((EXAMPLES / "example.yaml").read_text())
