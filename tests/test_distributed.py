"""How a process knows that it is one of several, from what schedulers set."""

import pytest

from transformer_jax import distributed
from transformer_jax.errors import UserError

SLURM = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "a[1-2]", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({**SLURM, "SLURM_NTASKS": "2"}, "Slurm"),
        ({**SLURM, "SLURM_NTASKS": "1"}, None),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2"}, None),  # a batch script itself, outside of srun
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),  # a pod of its own
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "1"}, "Kubernetes"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}, "variables"),
    ],
)
def test_a_job_is_found_by_what_its_scheduler_sets(environment, expected):
    assert distributed.found_in({"JAX_PLATFORMS": "cpu", **environment}) == expected


def test_a_tpu_is_found_by_its_chip_and_library(monkeypatch):
    monkeypatch.setattr(distributed, "_has_tpu", lambda: True)
    assert distributed.found_in({}) == "TPU"
    assert distributed.found_in({"JAX_PLATFORMS": "cpu"}) is None


def test_half_a_description_is_refused():
    with pytest.raises(UserError, match="not JAX_NUM_PROCESSES, JAX_PROCESS_ID"):
        distributed.found_in({"JAX_COORDINATOR_ADDRESS": "a:1"})
    with pytest.raises(UserError, match="JAX_PROCESS_ID=2 and JAX_NUM_PROCESSES=2"):
        distributed.found_in({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"})


def test_what_is_wanted_and_not_there_is_refused(monkeypatch):
    for name in distributed.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with pytest.raises(UserError, match="shows no job of several processes"):
        distributed.start(True)
    distributed.start(None)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "nowhere")
    distributed.start(False)
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="jax\\[k8s\\]"):
        distributed.start()


def test_alone_everything_is_one_call():
    assert distributed.is_main()
    assert not distributed.several()
    assert distributed.together(lambda: 1) == distributed.main_first(lambda: 1) == distributed.from_main(lambda: 1)
