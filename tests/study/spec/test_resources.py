from __future__ import annotations

import pytest

from brainseg.errors import StudyError
from study.spec.resources import Cluster, Node, share_cluster

LAPTOP = (Node(cpus=2, gpus=0),)
WORKSTATION = (Node(cpus=16, gpus=1),)
CLUSTER = (Node(32, 0), *(Node(32, 4) for _ in range(2)))
MIXED = (Node(32, 0), Node(4, 1))


def test_two_cores_hold_two_trials_of_one_thread() -> None:
    resources = share_cluster(LAPTOP, num_trials=4)
    assert (resources.cpus, resources.gpus, resources.threads) == (1, 0, 1)
    assert (resources.workers, resources.concurrent) == (0, 2)


def test_one_trial_left_gets_all_cores() -> None:
    assert share_cluster(LAPTOP, num_trials=1).threads == 2


def test_a_gpu_goes_to_one_trial_with_loader_workers() -> None:
    resources = share_cluster(WORKSTATION, num_trials=4)
    assert (resources.gpus, resources.cpus, resources.workers) == (1, 8, 7)
    assert (resources.concurrent, resources.threads) == (1, 1)


def test_half_a_gpu_each_packs_two() -> None:
    resources = share_cluster(WORKSTATION, num_trials=4, gpus=0.5)
    assert (resources.concurrent, resources.cpus) == (2, 8)
    assert share_cluster(CLUSTER, num_trials=100).concurrent == 8


def test_concurrent_limits_and_leaves_more_for_each() -> None:
    resources = share_cluster(LAPTOP, num_trials=4, concurrent=1)
    assert (resources.concurrent, resources.cpus) == (1, 2)


def test_a_trial_gets_what_one_node_has_at_once() -> None:
    resources = share_cluster(MIXED, num_trials=4)
    assert (resources.gpus, resources.cpus, resources.concurrent) == (1, 4, 1)


@pytest.mark.parametrize(
    ("cluster", "wish"),
    [
        (LAPTOP, {"cpus": 3}),
        (LAPTOP, {"gpus": 1.0}),
        (MIXED, {"cpus": 8, "gpus": 1.0}),
    ],
    ids=str,
)
def test_more_than_a_node_has_is_refused_before_the_start(
    cluster: Cluster, wish: dict[str, float]
) -> None:
    with pytest.raises(StudyError, match="which no single node has"):
        share_cluster(cluster, 4, **wish)  # type: ignore[arg-type]


def test_nodes_that_an_autoscaler_could_start_count_but_are_said_to_be_missing() -> None:
    cluster = (Node(0, 0), *[Node(4, 1, exists=False)] * 3)
    resources = share_cluster(cluster, num_trials=100, grows=True)
    assert (resources.cpus, resources.gpus) == (4, 1)
    assert (resources.concurrent, resources.coming) == (3, 3)
    assert "3 of them on nodes yet to be started" in resources.describe()
    with pytest.raises(StudyError, match="which no single node has"):
        share_cluster(cluster, 4, gpus=2, grows=True)


def test_a_head_without_processors_does_not_leave_one_to_each_trial() -> None:
    assert share_cluster((Node(0, 0), Node(8, 0)), num_trials=2).cpus == 4


def test_a_cluster_that_grows_has_no_limit_unless_asked_or_needed_by_a_search() -> None:
    growing = share_cluster(CLUSTER, 100, grows=True)
    assert growing.limit(searching=False) is growing.limit(searching=True) is None
    assert share_cluster(CLUSTER, 100, grows=True, concurrent=3).limit(searching=False) == 3
    assert share_cluster(CLUSTER, 100).limit(searching=False) == 8
    autoscaled = share_cluster((*CLUSTER, Node(32, 4, exists=False)), 100, grows=True)
    assert autoscaled.limit(searching=True) == 12
    assert autoscaled.limit(searching=False) is None
