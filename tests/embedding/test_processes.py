"""Two processes share the files of records; what they write is what one writes."""

import subprocess
import sys

import pytest

from tests.embedding.conftest import CONFIG
from tests.embedding.test_runner import digest
from tests.environment import ROOT, environment
from tests.multiprocess.test_training import finish, free_port
from unclip_jax.data.records import RecordReader
from unclip_jax.interop import native

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def export(tmp_path_factory, tokenizer, params):
    folder = tmp_path_factory.mktemp("export")
    native.write_part(folder, "clip", CONFIG, params, {})
    native.write_tokenizer(folder, tokenizer[1])
    return folder


def embed(export, *workdirs):
    """[(exit code, output)] of one process per workdir."""
    command = [sys.executable, "-m", "unclip_jax.embed", f"--config.clip={export}"]
    command += ["--config=configs/icons/embed.py", "--config.shard_size=10"]
    command += [f"--config.data.{k}=3" for k in ("nouns", "colours", "backgrounds")]
    command.append("--config.data.image_size=8")
    if len(workdirs) > 1:
        command.append(f"--coordinator=localhost:{free_port()}")
        command.append(f"--num_processes={len(workdirs)}")
    started = [
        subprocess.Popen(
            [*command, f"--workdir={workdir}", f"--process_id={i}"],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i, workdir in enumerate(workdirs)
    ]
    return finish(started)


def test_two_processes_write_what_one_does(tmp_path, export):
    ((code, said),) = embed(export, tmp_path / "one")
    assert code == 0, said
    done = embed(export, tmp_path / "two", tmp_path / "two")
    for code, said in done:
        assert code == 0, said
    assert len(RecordReader(tmp_path / "one" / "train").manifest["shards"]) > 2
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    shares = [said.count("s, compiling") for _, said in done]
    assert shares == [2, 2], done  # each had something to do in both splits


def test_processes_that_do_not_share_a_folder_are_refused(tmp_path, export):
    done = embed(export, tmp_path / "a", tmp_path / "b")
    assert [code for code, _ in done] == [2, 2], done
    assert "process 1 does not see what process 0 wrote" in done[0][1]
