"""The command line itself: help is quick, errors are one line, addresses are found, every setting has a flag."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.cli import main
from services.cli.commands import service
from services.cli.commands.tenant import millidevices
from services.cli.commands.trace import seconds
from services.cli.commands.up import check, sampled
from services.cli.errors import CommandError
from services.cli.options import DEFAULTS, Mesh, data_folder, find_mesh
from services.cli.show import duration, share, size
from services.common.settings import Address, ServiceSettings


class SampleSettings(ServiceSettings):
    """Settings of no service."""

    model_config = SettingsConfigDict(
        env_prefix="APPORTION_SAMPLE_", frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    listen: Address = "127.0.0.1:1"
    """HOST:PORT of the sample."""
    most_rows: int = Field(default=8, ge=1)
    """Rows at most."""
    eager: bool = False
    """Whether to hurry."""
    names: tuple[str, ...] = ("a",)
    """Names of things."""


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    for name in ("REGISTRY", "SCHEDULER", "QUERY", "FRONTEND", "MESH_TOKEN", "DEBUG"):
        monkeypatch.delenv(f"APPORTION_{name}", raising=False)
    monkeypatch.setenv("APPORTION_DATA", str(tmp_path))


def test_help_imports_neither_grpc_nor_torch_nor_pydantic():
    code = (
        "import sys; from services.cli.main import run; run(['--help']);"
        "sys.exit(any(name in sys.modules for name in ('grpc', 'torch', 'pydantic_settings', 'sqlalchemy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("name", ["up", "tenant", "model", "status", "trace"])
def test_every_command_explains_itself(name, capsys):
    assert main.run([name, "--help"]) == 0
    assert main.COMMANDS[name].split(".")[0][:30] in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["nonsense"], 2, "No such command"),
        (["status", "--nonsense"], 2, "No such option"),
        (["status", "--scheduler", "somewhere"], 2, "'somewhere' is not HOST:PORT"),
        (
            ["status", "--scheduler", "127.0.0.1:1"],
            1,
            "cannot reach the scheduler at 127.0.0.1:1: is `apportion up` running?",
        ),
        (["tenant", "create", "a", "--reserve", "65"], 2, "--reserve: 65 is not within 0 to 64 devices"),
        (["tenant", "list", "--registry", "127.0.0.1:1"], 1, "cannot reach the registry at 127.0.0.1:1"),
        (["trace", "show", "zz"], 2, "is not a trace id"),
        (["trace", "list", "--last", "soon"], 2, "--last: 'soon' is not a time span"),
        (["trace", "list", "--query", "127.0.0.1:1"], 1, "cannot reach the trace store at 127.0.0.1:1"),
        (["up", "--frontend", "8001"], 2, "--frontend: '8001' is not HOST:PORT"),
        (["up", "--trace-sample", "2"], 2, "--trace-sample: 2 is not within 0 to 1"),
        (["model", "push", "m", "/nowhere.onnx"], 2, "/nowhere.onnx"),
    ],
)
def test_what_goes_wrong_is_one_line_that_says_what_to_do(arguments, status, says, capsys):
    assert main.run(arguments) == status
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert says in line


def test_with_debug_an_error_keeps_its_traceback(monkeypatch):
    monkeypatch.setenv("APPORTION_DEBUG", "1")
    with pytest.raises(CommandError):
        main.run(["status", "--scheduler", "127.0.0.1:1"])


def test_an_address_is_a_flag_else_a_variable_else_what_up_wrote_else_the_default(tmp_path, monkeypatch):
    assert find_mesh().address("registry") == DEFAULTS["registry"]
    (tmp_path / "mesh.json").write_text('{"pid": 1, "addresses": {"registry": "127.0.0.1:1001"}}')
    assert find_mesh().address("registry") == "127.0.0.1:1001"
    monkeypatch.setenv("APPORTION_REGISTRY", "127.0.0.1:1002")
    assert find_mesh().address("registry") == "127.0.0.1:1002"
    assert find_mesh(registry="127.0.0.1:1003").address("registry") == "127.0.0.1:1003"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"pid": 1}'])
def test_a_broken_mesh_file_is_as_good_as_none(tmp_path, content):
    (tmp_path / "mesh.json").write_text(content)
    assert find_mesh().address("query") == DEFAULTS["query"]


def test_the_data_folder_is_a_flag_else_a_variable_else_in_the_home_folder(tmp_path):
    assert data_folder(tmp_path, {"APPORTION_DATA": "/elsewhere"}) == tmp_path
    assert str(data_folder(None, {"APPORTION_DATA": "/elsewhere"})) == "/elsewhere"
    assert str(data_folder(None, {})).endswith(".local/share/apportion")


def test_the_mesh_token_comes_from_the_environment():
    assert Mesh(data_folder(None), {}, {}, {"APPORTION_MESH_TOKEN": "secret"}).credentials.mesh_token == "secret"


def test_every_setting_of_a_service_has_a_flag_with_its_variable_and_default():
    options = {name: service.option(SampleSettings, name, field) for name, field in SampleSettings.model_fields.items()}
    assert set(options) == set(SampleSettings.model_fields)
    told = options["most_rows"].annotation.__metadata__[0]
    assert told.default == "--most-rows"
    assert told.help == "Rows at most. (env APPORTION_SAMPLE_MOST_ROWS; default 8)"
    assert options["eager"].annotation.__metadata__[0].default == "--eager"


@pytest.mark.parametrize("name", list(main.SERVICES))
def test_every_service_shows_its_flags(name, capsys, monkeypatch):
    pytest.importorskip(f"services.{name}.settings")
    monkeypatch.setenv("COLUMNS", "120")
    assert main.run([name, "--help"]) == 0
    shown = capsys.readouterr().out
    for field in service.settings_of(name).model_fields:
        assert "--" + field.replace("_", "-")[:20] in shown


def test_flags_win_over_variables_and_are_checked_by_the_settings(monkeypatch):
    monkeypatch.setenv("APPORTION_SAMPLE_MOST_ROWS", "5")
    assert service.checked(SampleSettings, {}).most_rows == 5
    given = service.checked(SampleSettings, {"most_rows": "7", "eager": "true", "names": ["b", "c"]})
    assert (given.most_rows, given.eager, given.names) == (7, True, ("b", "c"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"listen": "here"}, r"--listen \(APPORTION_SAMPLE_LISTEN\): 'here' is not HOST:PORT"),
        ({"most_rows": "0"}, r"--most-rows \(APPORTION_SAMPLE_MOST_ROWS\): .*greater than or equal to 1"),
        ({"most_rows": "many"}, "--most-rows"),
    ],
)
def test_a_wrong_setting_is_named_with_its_flag_and_variable(given, says):
    with pytest.raises(CommandError, match=says) as raised:
        service.checked(SampleSettings, given)
    assert raised.value.status == 2


def test_quantities_read_well():
    assert [duration(n) for n in (850_000, 12_340_000, 4_100_000_000)] == ["850 µs", "12.3 ms", "4.1 s"]
    assert [size(n) for n in (5, 2048, 150 << 20, 3 << 40)] == ["5 B", "2.0 KiB", "150 MiB", "3072 GiB"]
    assert share(250) == "0.25"
    assert (millidevices(0.25), millidevices(0), millidevices(64)) == (250, 0, 64_000)
    assert (seconds("90s"), seconds("15m"), seconds("1.5h"), seconds("7d")) == (90, 900, 5400, 604_800)


def test_up_checks_what_it_is_told():
    assert sampled(None) is None
    assert sampled(0.5) == 0.5
    from services.cli.up.plan import Listen

    check(Listen())
    with pytest.raises(CommandError, match="--query"):
        check(Listen(query="127.0.0.1:70000"))
