"""Configuration, client and evaluation with a real supervisord."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from integration.supervisor.supervisord_daemon import Daemon, daemon, python, until

from deferrable_ops.exceptions import InputError, SupervisordRefused, SupervisordUnavailable
from deferrable_ops.supervisord import Action
from deferrable_ops.supervisord.crash_loops import CrashLoopStep
from deferrable_ops.supervisord.processes import Process, ProcessState
from deferrable_ops.upstreams.supervisord.client import Processes, SupervisordAddress, use_supervisord

pytest.importorskip("supervisor.supervisord")

# Prints its arguments.
ECHO = "import json,os,sys; print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]))"


async def test_program_gets_its_exact_arguments() -> None:
    environment = {"A": "100% ; #x %(here)s %%(here)s", "B": "it's", "C": 'say "hi" now', "D": " é😀 "}
    program = {
        "command": python(ECHO) + " 'a ; b' 100% #c %(process_num)02d '%%(here)s' é",
        "environment": environment,
        "startsecs": 0,
    }
    async with daemon(program={"test": program}) as found:
        await found.start()
        verdict = await until(found.verdict)
        assert (verdict.action, verdict.reason) == (Action.SUCCESS, "test:test exited with 0")
        arguments, variables, directory = json.loads(found.config.program["test"].stdout_logfile.read_text())
        here = str(found.config.config_path.parent)
        assert arguments == ["a ; b", "100%", "#c", "00", "%(here)s", "é"]
        expected = environment | {"A": f"100% ; #x {here} %(here)s"}
        assert {name: variables[name] for name in expected} == expected
        assert directory == str(found.config.program["test"].directory)
        assert variables["SUPERVISOR_SERVER_URL"] == f"unix://{found.config.socket_path}"
        assert found.config.socket_path.stat().st_mode & 0o777 == 0o700


async def test_exit_code_is_interpreted_by_the_policy() -> None:
    async with daemon(
        program={"test": {"command": python("exit(99)")}, "dead": {"command": "/no/such/program"}},
        policies={"test": {"exit_codes": {99: "skip"}}, "dead": {"otherwise": "fail"}},
    ) as found:
        await found.start()
        seen = await until(lambda: ended(found, "test"))
        assert (seen.state, seen.exit_code) == (ProcessState.EXITED, 99)
        with pytest.raises(SupervisordRefused, match="NO_FILE") as refused:
            await found.start("dead:dead")
        assert refused.value.code == 20
        verdict = await until(found.verdict)
        assert verdict.action is Action.FAIL
        assert "dead:dead was never started by this supervisord" in verdict.reason


async def ended(found: Daemon, name: str) -> Process | None:
    (process,) = [
        process for process in map(Process.from_info, await found.client.processes()) if process.name == name
    ]
    return process if process.start and not process.pid else None


async def test_signalled_program_has_failed_and_stopped_program_is_done() -> None:
    program = {"command": python("import signal; signal.pause()")}
    async with daemon(program={"test": program}, startsecs=0) as found:
        await found.start()
        await until(lambda: running(found))
        await found.client.call("supervisor.signalProcess", "test:test", "KILL")
        verdict = await until(found.verdict)
        assert (verdict.action, verdict.reason) == (Action.RETRIGGER, "test:test was ended by a signal")
        await found.start()
        await until(lambda: running(found))
        await found.client.call("supervisor.stopProcess", "test:test")
        verdict = await until(found.verdict)
        assert (verdict.action, verdict.reason) == (Action.SUCCESS, "test:test was stopped")


async def running(found: Daemon) -> bool:
    (process,) = map(Process.from_info, await found.client.processes())
    return process.state is ProcessState.RUNNING


async def test_crash_loop_is_detected_and_paused() -> None:
    async with daemon(
        program={"test": {"command": python("exit(1)"), "autorestart": True, "startsecs": 0}},
        policy={"crash_restarts": 2, "crash_window": 60, "crash_delay": 1, "crash_give_up": 1},
    ) as found:
        await found.start()
        assert await until(lambda: step(found)) == {"test:test": CrashLoopStep.PAUSE}
        with_pause = found.histories["test:test"]
        assert (with_pause.pauses, with_pause.paused_until is not None) == (1, True)
        await until(lambda: stopped(found))
        assert await until(lambda: step(found)) == {"test:test": CrashLoopStep.RESUME}
        await found.start()
        verdict = await until(found.verdict)
        assert verdict.action is Action.RETRIGGER
        assert "crash loop" in verdict.reason


async def step(found: Daemon) -> dict[str, CrashLoopStep]:
    return (await found.look()).steps


async def stopped(found: Daemon) -> bool:
    try:
        await found.client.call("supervisor.stopProcess", "test:test")
    except SupervisordRefused:
        (process,) = map(Process.from_info, await found.client.processes())
        return process.state in (ProcessState.STOPPED, ProcessState.EXITED)
    return True


async def test_multicall_may_fail_partly() -> None:
    async with daemon(program={"test": {"command": python("pass")}}) as found:
        state, refused, processes = await found.client.multicall(
            [
                ("supervisor.getState", ()),
                ("supervisor.getProcessInfo", ("nobody",)),
                ("supervisor.getAllProcessInfo", ()),
            ]
        )
        assert state["statename"] == "RUNNING"
        assert isinstance(refused, SupervisordRefused)
        assert refused.code == 10
        assert [item["name"] for item in processes] == ["test"]
        with pytest.raises(SupervisordRefused, match="BAD_NAME: nobody"):
            await found.client.call("supervisor.getProcessInfo", "nobody")


async def test_all_watchers_share_one_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    async with daemon(program={"test": {"command": python("pass")}}) as found:
        asked, call = list[str](), found.client.call

        async def counted(method: str, *arguments: Any) -> Any:
            asked.append(method)
            return await call(method, *arguments)

        monkeypatch.setattr(found.client, "call", counted)
        understood = 0

        def read_states(answer: Processes, _previous: list[str] | None) -> list[str]:
            nonlocal understood
            understood += 1
            return [process["statename"] for process in answer]

        async def watch() -> list[list[str]]:
            async with use_supervisord(SupervisordAddress(socket=found.config.socket_path)) as client:
                with client.watch(0.05, read_states) as watched:
                    return [await watched.next() for _ in range(4)]

        assert await asyncio.gather(*(watch() for _ in range(20))) == [[["STOPPED"]] * 4] * 20
        assert understood == 4, "each answer is parsed once"
        assert asked == ["supervisor.getAllProcessInfo"] * 4


async def test_port_with_a_password_refuses_calls_without_it(unused_tcp_port: int) -> None:
    url, secret = f"http://127.0.0.1:{unused_tcp_port}/RPC2", "50% ü:x"
    async with daemon(
        program={"test": {"command": python("pass")}},
        port=f"127.0.0.1:{unused_tcp_port}",
        username="airflow",
        password=secret,
        address=SupervisordAddress(url=url, username="airflow", password=secret),
    ) as found:
        for wrong in (
            SupervisordAddress(url=url),
            SupervisordAddress(url=url, username="airflow", password="wrong"),
        ):
            async with use_supervisord(wrong) as client:
                with pytest.raises(SupervisordRefused, match="rejected the login") as refused:
                    await client.call("supervisor.getState")
                assert refused.value.code == 0
        assert secret not in repr(SupervisordAddress(url=url, username="airflow", password=secret))
        assert (await found.client.call("supervisor.getState"))["statename"] == "RUNNING"


async def test_missing_supervisord_is_unavailable(tmp_path: Path) -> None:
    async with use_supervisord(SupervisordAddress(socket=tmp_path / "none.sock")) as client:
        with pytest.raises(SupervisordUnavailable, match=r"none\.sock: UnixClientConnectorError"):
            await client.processes()


def test_contradictory_address_is_refused(tmp_path: Path) -> None:
    for wrong, message in (
        ({}, "either socket or url"),
        ({"socket": tmp_path, "url": "http://x"}, "either socket or url"),
        ({"url": "http://a:b@x"}, "contains credentials"),
        ({"url": "http://x", "username": "a", "password": "{SHA}82ab"}, "is a hash"),
    ):
        with pytest.raises(InputError, match=message):
            SupervisordAddress(**wrong)  # type: ignore[arg-type]
