"""config.log.profile: which steps are traced, and what is said where none can be."""

import dataclasses

import jax.numpy as jnp
import pytest

from clipjax import signals
from clipjax.config import ConfigError
from clipjax.training import profile
from clipjax.training.check import part_checks
from clipjax.training.profile import ON_REQUEST, Profiler, profile_window
from tests.tiny import tiny_config

STATE = jnp.zeros(1)


def config_of(text, **changes):
    config = tiny_config()
    return dataclasses.replace(config, log=dataclasses.replace(config.log, profile=text, **changes))


@pytest.fixture
def traced(monkeypatch):
    """The steps in traces that were begun, as (first, last), and what was announced; nothing is really traced."""
    said, running = [], []
    monkeypatch.setattr(profile, "announce", said.append)
    monkeypatch.setattr(profile.jax.profiler, "start_trace", lambda folder, profiler_options: running.append(folder))
    monkeypatch.setattr(profile.jax.profiler, "stop_trace", running.pop)
    return said


def make_steps(profiler, first, last, preempted_at=0):
    made = []
    with profiler:
        for step in range(first, last + 1):
            profiler.before(step, STATE)
            made += [step] if profiler.until else []
            profiler.after(step, STATE, ends=step == preempted_at)
            if step == preempted_at:
                break
    return made


@pytest.mark.parametrize(
    "text, words",
    [
        ("100", "does not name steps; expected the first and the last one to trace, such as '100:105'"),
        ("a:b", "does not name steps"),
        ("5:", "does not name steps"),
        ("-3:5", "does not name steps"),
        ("1:2:3", "does not name steps"),
        ("3 : 5", "does not name steps"),
        ("0:5", "the first step is 1; use '1:5'"),
        ("9:5", "ends before it begins; the first step comes first: '5:9'"),
        ("21:30", "begins after the last step, config.total_steps=20"),
    ],
)
def test_a_window_that_names_no_steps_is_refused_before_training(text, words):
    with pytest.raises(ConfigError, match="config.log.profile='") as error:
        for refuse in part_checks(config_of(text), num_devices=8):
            refuse()
    assert words in str(error.value)


def test_a_window_is_its_first_and_last_step_and_ends_with_the_run():
    assert profile_window(config_of("")) is None
    assert profile_window(config_of("3:3")) == (3, 3)
    assert profile_window(config_of("18:30")) == (18, 20)


@pytest.mark.parametrize(
    "window, resume, made, said",
    [
        ("5:7", 0, [5, 6, 7], ""),
        ("1:1", 0, [1], ""),
        ("18:99", 0, [18, 19, 20], ""),
        ("5:7", 5, [6, 7], "the run goes on after step 5, so that steps 6 to 7 are traced."),
        ("5:7", 7, [], "the run goes on after step 7, so that these steps are not made again, and nothing is traced."),
    ],
)
def test_the_steps_of_the_window_are_traced_where_the_run_makes_them(traced, tmp_path, window, resume, made, said):
    profiler = Profiler(config_of(window), tmp_path, resume)
    assert (said in traced[0]) if said else not traced
    assert make_steps(profiler, resume + 1, 20) == made
    assert sum(text.startswith("profiled steps") for text in traced) == bool(made)


def test_a_preemption_inside_the_window_keeps_what_was_traced(traced, tmp_path):
    assert make_steps(Profiler(config_of("5:9"), tmp_path), 1, 20, preempted_at=6) == [5, 6]
    assert traced[-1].startswith("profiled steps 5 to 6: ")


def test_a_request_traces_the_next_steps_once(traced, tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "_requested", True)
    assert make_steps(Profiler(config_of(""), tmp_path), 3, 20) == list(range(3, 3 + ON_REQUEST))
    assert traced[0] == f"SIGUSR2: profiling steps 3 to {2 + ON_REQUEST}"


def test_a_profile_that_cannot_be_made_or_written_is_a_warning(traced, tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise RuntimeError("Only one profile may be run at a time.")

    monkeypatch.setattr(profile.jax.profiler, "stop_trace", refuse)
    make_steps(Profiler(config_of("5:7"), tmp_path), 1, 20)
    monkeypatch.setattr(profile.jax.profiler, "start_trace", refuse)
    make_steps(Profiler(config_of("5:7"), tmp_path), 1, 20)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "The profile of steps 5 to 7 could not be written", "Steps 5 to 7 cannot be profiled"
    ]  # fmt: skip


def test_only_the_first_process_traces_unless_all_are_asked_for(traced, tmp_path, monkeypatch):
    monkeypatch.setattr(profile.jax, "process_index", lambda: 3)
    monkeypatch.setattr(profile.jax, "process_count", lambda: 4)
    monkeypatch.setattr(profile, "gather_json", lambda value: ["of_process_0", value, value, value])
    make_steps(Profiler(config_of("5:7"), tmp_path), 1, 20)
    assert not traced
    profiler = Profiler(config_of("5:7", profile_hosts="all"), tmp_path)
    make_steps(profiler, 1, 20)
    assert profiler.name == "of_process_0" and traced[0] == "profiling steps 5 to 7"


def test_the_traces_of_processes_on_one_host_have_names_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(profile.socket, "gethostname", lambda: "pod-3")
    made = tmp_path / "local" / "plugins" / "profile" / "now"
    made.mkdir(parents=True)
    (made / "pod-3.xplane.pb").write_text("trace")
    profiler = Profiler(config_of("5:7"), tmp_path / "run")
    profiler.local, profiler.name = str(tmp_path / "local"), "2026"
    for count, name in ((1, "pod-3.xplane.pb"), (4, "pod-3_process_0.xplane.pb")):
        monkeypatch.setattr(profile.jax, "process_count", lambda count=count: count)
        folder = profiler._keep()
        assert folder == tmp_path / "run" / "profile" / "plugins" / "profile" / "2026"
        assert (folder / name).read_text() == "trace"
