"""A mixture keeps its proportions at every example, each source its own epochs, and the order is a function of i."""

import dataclasses
import json
import pickle
import time
from fractions import Fraction

import numpy as np
import pytest

from clipjax.config import (
    ConfigError,
    DataConfig,
    MixturePart,
    SourceConfig,
    default_config,
    from_config_dict,
    to_config_dict,
)
from clipjax.data.mixture import PERIOD, Mixture, crowded, interleave, open_train, places_of
from clipjax.data.records import RecordError
from clipjax.training.check import check
from tests.data.samples import FaultySource, example, run_script, write_folder
from tests.data.test_pipeline import DATA, assert_equal, joined, stream, take
from tests.tiny import tiny_config

SIZES = {"a": 37, "b": 11, "c": 5}
WEIGHTS = {"a": 0.6, "b": 0.3, "c": 0.1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("mixture")
    return {name: str(write_folder(base / name, size)) for name, size in SIZES.items()}


def data_of(folders, weights=WEIGHTS, **changes):
    parts = {name: MixturePart(SourceConfig(path=folders[name]), weight) for name, weight in weights.items()}
    return dataclasses.replace(DATA, mixture=parts, **changes)


def mixed(sizes, weights, seed=0):
    return Mixture({name: range(size) for name, size in sizes.items()}, weights).order(seed)


@pytest.mark.parametrize(
    "weights",
    [(1,), (1, 1), (2, 1), (7, 2, 1), (0.6, 0.3, 0.1), (0.999, 0.001), (1, 1, 1, 1, 1, 1, 1), (3.7, 0.2, 11.1, 5)],
)
def test_at_every_example_the_counts_are_the_shares_but_for_the_stated_bound(weights):
    counts = places_of(weights)
    part, earlier = interleave(counts)
    assert counts.sum() == PERIOD == len(part)
    share = counts / PERIOD
    np.testing.assert_allclose(share, np.array(weights) / sum(weights), atol=1 / PERIOD, rtol=0)
    n = np.arange(1, PERIOD + 1)
    for k in range(len(weights)):
        seen = np.cumsum(part == k)
        assert seen[-1] == counts[k]
        assert np.abs(seen - n * share[k]).max() <= 0.5 + share[k] * len(weights) / 2 + 1e-6
        assert (earlier[part == k] == np.arange(counts[k])).all()


def test_shares_in_per_mille_and_of_small_denominators_are_exact():
    for shares in ((3, 2, 1), (0.333, 0.667), (1, 1, 1), (2, 7), (0.125, 0.875), (1, 6), (0.1, 0.2, 0.7)):
        expected = [Fraction(str(s)) / sum(Fraction(str(s)) for s in shares) for s in shares]
        assert [Fraction(int(c), PERIOD) for c in places_of(shares)] == expected


def test_every_part_goes_through_its_own_epochs_without_repeating_or_losing_a_record():
    order = mixed(SIZES, WEIGHTS)
    drawn = [order[i] for i in range(800)]
    starts = {"a": 0, "b": 37, "c": 48}
    for name, size in SIZES.items():
        own = [g - starts[name] for g in drawn if starts[name] <= g < starts[name] + size]
        epochs = [own[e * size : (e + 1) * size] for e in range(len(own) // size)]
        assert len(epochs) >= 12
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > len(epochs) // 2
        assert order.progress(800)[f"examples/{name}"] == len(own)
        assert order.progress(800)[f"epoch/{name}"] == pytest.approx(len(own) / size, abs=1e-12)


def test_counts_over_the_end_of_a_period_are_those_of_all_examples_before():
    order = mixed(SIZES, WEIGHTS)
    first = order[PERIOD - 1], order[PERIOD]
    for n in (PERIOD - 1, PERIOD, PERIOD + 1, 3 * PERIOD + 17):
        assert sum(order.progress(n)[f"examples/{name}"] for name in SIZES) == n
    # The example after a period continues its part's epoch, it does not begin one.
    before = {name: order.progress(PERIOD)[f"examples/{name}"] for name in SIZES}
    part = [k for k, start in enumerate((0, 37, 48)) if start <= first[1]][-1]
    name = list(SIZES)[part]
    assert before[name] % SIZES[name] != 0
    assert first[1] == (0, 37, 48)[part] + order.parts[part][before[name]]


def test_the_order_of_a_part_does_not_depend_on_the_others_or_on_how_the_mixture_is_written():
    order, turned = mixed(SIZES, WEIGHTS), mixed(dict(reversed(SIZES.items())), WEIGHTS)
    assert [order[i] for i in range(200)] == [turned[i] for i in range(200)]
    alone = mixed({"b": 11}, {"b": 5.0})
    own = [order[i] - 37 for i in range(200) if 37 <= order[i] < 48]
    assert own == [alone[i] for i in range(len(own))]
    assert [mixed(SIZES, WEIGHTS, seed=1)[i] for i in range(50)] != [order[i] for i in range(50)]


@pytest.fixture(scope="module")
def reference(folders):
    data = data_of(folders)
    return take(stream(open_train(data), data=data), 6)


@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_hosts_sees_the_same_batches_of_a_mixture(folders, reference, processes):
    data = data_of(folders)
    source = open_train(data)
    parts = [take(stream(source, data=data, process=(p, processes)), 6) for p in range(processes)]
    assert_equal([joined(part) for part in zip(*parts, strict=True)], reference)


WORKERS = """
import pickle, sys
import numpy as np
from clipjax.data.mixture import open_train
from tests.data.test_pipeline import joined, stream, take

if __name__ == "__main__":
    data = pickle.loads(open(sys.argv[1], "rb").read())
    for p in range(2):
        found = take(stream(open_train(data), data=data, process=(p, 2)), 3)
        np.savez(sys.argv[2 + p], **joined(found))
"""


@pytest.mark.slow
def test_two_hosts_with_two_worker_processes_each_see_the_same_batches(folders, reference, tmp_path):
    script, config, outs = tmp_path / "read.py", tmp_path / "config", [tmp_path / "0.npz", tmp_path / "1.npz"]
    script.write_text(WORKERS)
    config.write_bytes(pickle.dumps(data_of(folders, worker_count=2)))
    done = run_script(script, config, *outs)
    assert done.returncode == 0, done.stderr
    hosts = [{name: np.split(rows, 3) for name, rows in np.load(out).items()} for out in outs]
    batches = [{name: np.concatenate([host[name][s] for host in hosts]) for name in hosts[0]} for s in range(3)]
    assert_equal(batches, reference[:3])


def test_a_run_of_eight_hosts_goes_on_with_four(folders, reference):
    data = data_of(folders)
    source = open_train(data)
    eight = [stream(source, data=data, process=(p, 8)) for p in range(8)]
    state = [[next(iterator)[1] for iterator in eight] for _ in range(3)][-1][5]
    four = [stream(source, data=data, process=(p, 4)) for p in range(4)]
    for iterator in four:
        iterator.set_state(json.loads(json.dumps(state)))
    assert_equal([joined([next(i)[0] for i in four]) for _ in range(3)], reference[3:])


def test_resuming_after_a_million_steps_takes_milliseconds_and_a_state_of_a_few_bytes():
    sources = {name: FaultySource(size, bad=set()) for name, size in {"a": 10**7, "b": 10**5, "c": 30}.items()}
    iterator = stream(Mixture(sources, WEIGHTS), batch=8192, process=(3, 4096))
    state = {"step": 10**6, "read": 10**6 * 2, "bad": {}}
    started = time.process_time()
    iterator.set_state(state)
    batch, after = next(iterator)
    assert time.process_time() - started < 0.5
    assert len(json.dumps(after)) < 100 and len(batch["image"]) == 2
    progress = iterator.progress(10**6)
    assert progress["examples/c"] == pytest.approx(0.1 * 8192 * 10**6, abs=1)
    assert progress["epoch/a"] == pytest.approx(0.6 * 8192 * 10**6 / 10**7, rel=1e-9)
    direct = [iterator.examples.order[10**6 * 8192 + 6 + row] for row in range(2)]
    sizes = np.cumsum([0, 10**7, 10**5])
    expected = [g - int(sizes[sizes <= g][-1]) for g in direct]
    assert batch["text"][:, 1].tolist() == expected


def test_equal_pair_ids_of_different_parts_stay_different_and_equal_ones_of_a_part_equal():
    class Ids(list):
        class_names = ()

        def where(self, index):
            return "ids", index

    ids = {"x": [0, 0, 7, -1], "y": [0, 7, 7, -1], "z": [2**31 // 3 - 1, 2**31 // 3, 2**31 - 1]}
    sources = {name: Ids({**example(0), "pair_id": p} for p in values) for name, values in ids.items()}
    mixture = Mixture(sources, dict.fromkeys(ids, 1.0))
    found = [mixture[i]["pair_id"] for i in range(8)]
    assert found == [0, 0, 21, -1, 1, 22, 22, -1]
    assert mixture[8]["pair_id"] == 3 * (2**31 // 3 - 1) + 2 < 2**31
    for too_large in (9, 10):
        with pytest.raises(RecordError, match=r"of 'z' in a mixture of 3, where ids must be below 715827882") as caught:
            mixture[too_large]
        assert caught.value.cause == "pair_id too large"


def test_keys_places_and_labels_are_told_apart(folders):
    mixture = open_train(data_of(folders))
    assert len(mixture) == 53
    assert mixture[36]["key"] == "a/key36" and mixture[37]["key"] == "b/key0" and mixture[52]["key"] == "c/key4"
    assert mixture.where(37) == (f"{folders['b']}/train-00000-of-00002.arrayrecord", 0)
    assert {mixture[i]["label"] for i in range(53)} == {-1} and mixture.class_names == ()
    with pytest.raises(IndexError):
        mixture[53]


def test_parts_of_which_a_batch_has_more_examples_than_there_are_records_are_told():
    small, large = [example(i) for i in range(3)], [example(i) for i in range(100)]
    mixture = Mixture({"a": small, "b": large}, {"a": 1.0, "b": 3.0})
    assert crowded(mixture, 12) == [] and crowded(mixture, 16) == [("a", 4, 3)]
    assert crowded(small, 3) == [] and crowded(small, 4) == [("", 4, 3)]


def test_a_bad_record_is_replaced_by_one_of_its_own_part_so_the_shares_stay():
    sources = {"a": FaultySource(20, bad=set(range(0, 20, 2))), "b": FaultySource(20, bad=set())}
    data = dataclasses.replace(DATA, max_bad_share=1.0)
    iterator = stream(Mixture(sources, {"a": 1.0, "b": 1.0}), data=data, batch=40)
    batch, state = next(iterator)
    part, record = batch["pair_id"] % 2, batch["pair_id"] // 2
    assert (part == 0).sum() == 20 and (record[part == 0] % 2 == 1).all()
    assert sorted(record[part == 1]) == list(range(20))
    assert state["bad"]["corrupt image"] >= 10


def test_a_mixture_of_one_source_alone_is_what_train_was(folders):
    """data.train is read as before: one permutation per epoch, seeded by the run's seed."""
    data = dataclasses.replace(DATA, train=SourceConfig(path=folders["a"]))
    source = open_train(data)
    assert not isinstance(source, Mixture)
    iterator = stream(source, data=data)
    assert iterator.progress(2) == {"epoch": 48 / 37}


def checked(data):
    return check(dataclasses.replace(tiny_config(), data=data), num_devices=8)


def test_weights_that_are_none_and_a_mixture_beside_a_source_are_refused(folders):
    checked(data_of(folders))
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"mixture.b.weight=.* must be above 0"):
            checked(data_of(folders, {"a": 1.0, "b": weight}))
    with pytest.raises(ConfigError, match="less than one example in 252000"):
        checked(data_of(folders, {"a": 1.0, "b": 1e-6}))
    with pytest.raises(ConfigError, match="parts a, b, c, and config.data.train.path='x' is set as well"):
        checked(data_of(folders, train=SourceConfig(path="x")))


def test_a_mixture_is_written_in_an_experiment_and_its_weights_checked_by_type():
    tree = default_config()
    tree.data.mixture = {"a": to_config_dict(MixturePart(SourceConfig(path="x"), 2.0))}
    tree.data.mixture.a.weight = 3.0
    assert from_config_dict(tree).data == DataConfig(mixture={"a": MixturePart(SourceConfig(path="x"), 3.0)})
    tree.data.mixture = {"a": {"weight": "much"}}
    with pytest.raises(ConfigError, match="config.data.mixture.a.weight is 'much'"):
        from_config_dict(tree)
