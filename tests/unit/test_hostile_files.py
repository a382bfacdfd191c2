"""Every reader of a file is given files that would run code: nothing runs, and what is said is one line that names one.

docs/security.md lists the readers, and which of these tests each of them has.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lion_lightning.cache import read_json
from lion_lightning.callbacks.monitors.health import read_findings
from lion_lightning.data.document_filters.applied import read_decision
from lion_lightning.data.learning.record import RecordedLosses
from lion_lightning.data.reports.source_report import SourceReport
from lion_lightning.data.sources.source import Source
from lion_lightning.data.store.shards import manifest_path, read_batches, read_shard, shard_path
from lion_lightning.data.streaming.mixing import Cursor
from lion_lightning.data.streaming.reading import Line, Place, SourceReader
from lion_lightning.distributed.rendezvous import WorkerGroup
from lion_lightning.errors import explain
from lion_lightning.judges import PairRMJudge, RewardModelJudge, RubricLLMJudge
from lion_lightning.models.chat_template import ChatTemplate
from lion_lightning.models.checkpoints.files import read_checkpoint
from lion_lightning.models.generation.settings import stored_settings
from lion_lightning.models.spec import PolicySpec
from lion_lightning.models.tokenizer import TokenizerSpec
from lion_lightning.models.weights.sharded_loading import WeightFiles
from lion_lightning.processes.folder_lock import FolderLock
from lion_lightning.references.store import AnswerStore
from lion_lightning.rollouts.rounds import Round, round_path
from lion_lightning.tools.answers import FORMATS
from lion_lightning.tools.chat.conversation import load_served
from lion_lightning.tools.evaluate.answers import answer
from lion_lightning.tools.importing.reading import read_imported
from lion_lightning.tools.importing.writing import config_text
from lion_lightning.tools.pipeline.plan import StagePlan, read_plan
from lion_lightning.tools.pipeline.stage import require_start
from lion_lightning.tools.report.logs import read_stage
from lion_lightning.tools.train.config_file import read_config_file
from tests import hostile, tiny
from tests.unit.chat_server import serving


@pytest.fixture
def reads(tmp_path: Path) -> Any:
    """Writes files of all kinds to a place, reads each, and sees that nothing ran."""

    def reads(path: Path, read: Callable[[], Any], named: str | None = None, fails: bool = True) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        for kind, content in hostile.KINDS.items():
            path.write_bytes(content(tmp_path / "canary"))
            said = _said(read)
            assert bool(said) or not fails, kind
            assert not said or (named or path.name) in said, f"{kind}: {said}"
            assert not (tmp_path / "canary").exists(), kind

    return reads


def _said(read: Callable[[], Any]) -> str:
    """The one line that the command line would print; empty where there is no error."""
    try:
        read()
    except (ValueError, OSError) as error:
        line = explain(error)
        assert len(line.splitlines()) == 1
        assert len(line) < 600
        return line
    return ""


def test_the_files_do_run_code_in_a_careless_reader(tmp_path: Path) -> None:
    pickle.loads(hostile.KINDS["pickle"](tmp_path / "canary"))
    assert (tmp_path / "canary").is_dir()


# --- data


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.parquet", "x.pkl", "x.pt", "x.npz", "x.tar", "x.csv", "x"])
def test_a_source_is_read_as_data(name: str, reads: Any, tmp_path: Path) -> None:
    reads(tmp_path / name, lambda: [row.values for row in Source(str(tmp_path / name)).open().take(np.arange(1))])


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.parquet", "x.csv", "x.jsonl.gz", "x.jsonl.zst", "x"])
def test_a_stream_is_read_as_data(name: str, reads: Any, tmp_path: Path) -> None:
    def read() -> None:
        for block in SourceReader.of(Source(str(tmp_path / name), streaming=True)).blocks(Place()):
            assert [(row.parse() if isinstance(row, Line) else row).values for row in block.rows]

    reads(tmp_path / name, read, fails=name != "x.csv")  # a line of names without rows is no error of the file


def test_the_state_of_a_stream_is_read_as_data(tmp_path: Path) -> None:
    state = Cursor(Place()).state()
    for content in hostile.KINDS.values():
        with pytest.raises(ValueError, match="Expecting value"):
            Cursor.of({**state, "report": content(tmp_path / "canary").decode("latin-1")}, SourceReport)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
def test_a_saved_set_is_read_as_data(name: str, reads: Any, tmp_path: Path) -> None:
    from datasets import Dataset

    folder = tmp_path / "saved"
    Dataset.from_dict({"text": ["a"]}).save_to_disk(str(folder))
    reads(folder / name, lambda: list(Source(str(folder)).open().take(np.arange(1))), "saved")


def test_a_token_store_is_read_as_data(reads: Any, tmp_path: Path) -> None:
    part = shard_path(tmp_path, 0, 1)
    reads(part, lambda: read_batches(part))
    reads(manifest_path(part), lambda: read_shard(part, check=True))


def test_the_decision_of_a_filter_is_read_as_data(reads: Any, tmp_path: Path) -> None:
    path = tmp_path / "decision.json"
    reads(path, lambda: read_decision(path, 3))
    whole = {"causes": {"x": [0, 2]}, "report": {}, "lines": [], "warnings": [], "details": []}
    path.write_text(json.dumps(whole))
    assert read_decision(path, 3).causes["x"].tolist() == [True, False, True]
    for wrong in (
        {"causes": {"x": ["0"]}},
        {"causes": {"x": [-1]}},
        {"causes": {"x": [3]}},
        {"lines": "a"},
        {"more": 1},
    ):
        path.write_text(json.dumps(whole | wrong))
        assert path.name in _said(lambda: read_decision(path, 3))


@pytest.mark.parametrize("name", ["round-0000.arrow", "round-0000.json"])
def test_a_round_is_read_as_data(name: str, reads: Any, tmp_path: Path) -> None:
    made = round_path(tmp_path, 0)
    reads(tmp_path / name, lambda: Round(made).rollouts if name.endswith("arrow") else Round(made).summary)


# --- configs


def test_a_config_is_read_as_plain_yaml(reads: Any, tmp_path: Path) -> None:
    reads(tmp_path / "c.yaml", lambda: read_config_file(tmp_path / "c.yaml"))
    reads(tmp_path / "p.yaml", lambda: read_plan(tmp_path / "p.yaml"))


def test_a_config_of_another_program_is_read_as_data(reads: Any, tmp_path: Path) -> None:
    reads(tmp_path / "c.yaml", lambda: read_imported(tmp_path / "c.yaml"))
    factory = {"model_name_or_path": "m", "stage": "sft", "finetuning_type": "full", "dataset": "d"}
    (tmp_path / "f" / "c.yaml").parent.mkdir()
    (tmp_path / "f" / "c.yaml").write_text(json.dumps(factory))
    reads(tmp_path / "f" / "dataset_info.json", lambda: read_imported(tmp_path / "f" / "c.yaml"))
    bomb = ["a: &a [x, x, x, x, x, x, x, x, x, x]", *(f"{b}: &{b} [{', '.join(['*' + a] * 10)}]" for a, b in _next())]
    wrong = {
        "aliases": "\n".join(["base_model: m", *bomb]),
        "a huge number": "base_model: m\nmicro_batch_size: " + "9" * 5000,
        "nested": "base_model: m\ndatasets: " + "[" * 3000,
        "python": "base_model: !!python/object/apply:os.system [ls]",
    }
    for name, text in wrong.items():
        (tmp_path / "w.yaml").write_text(text)
        assert "w.yaml: " in _said(lambda: read_imported(tmp_path / "w.yaml")), name
    assert "is a directory" in _said(lambda: read_imported(tmp_path))


def test_keys_and_values_of_another_program_s_config_write_no_lines_of_ours(tmp_path: Path) -> None:
    evil = "x\nmodel: {class_path: os.system}"
    given = {"base_model": evil, "optimizer": evil, evil: 1, "datasets": [{"path": evil, "type": evil}]}
    (tmp_path / "c.yaml").write_text(json.dumps(given))
    text = config_text(read_imported(tmp_path / "c.yaml"), evil)
    config = yaml.safe_load(text)
    assert config.keys() == {"seed_everything", "model", "data", "trainer"}
    assert config["model"]["class_path"] == "lion_lightning.SFTModule"
    assert config["model"]["init_args"]["policy"]["path"] == evil  # a text, as any other


def _next() -> Iterator[tuple[str, str]]:
    return zip("abcdefg", "bcdefgh", strict=True)


# --- models


def model_folder(folder: Path) -> Path:
    PolicySpec(config=tiny.config()).build().causal_lm.save_pretrained(folder)
    tiny.tokenizer_folder(folder)
    return folder


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "generation_config.json", "model.safetensors.index.json", "pytorch_model.bin"],
)
def test_a_model_is_read_as_tensors_and_data(name: str, reads: Any, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    if name not in ("model.safetensors", "config.json", "generation_config.json"):
        (folder / "model.safetensors").unlink()
    reads(folder / name, lambda: PolicySpec(path=str(folder)).build(), "model", fails=name != "generation_config.json")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_tokenizer_is_read_as_data(name: str, reads: Any, tmp_path: Path) -> None:
    folder = tiny.tokenizer_folder(tmp_path / "tok")
    load = TokenizerSpec(str(folder)).load
    reads(folder / name, lambda: load(), "tok", fails=name != "chat_template.jinja")


def test_a_checkpoint_is_read_as_tensors_and_data(reads: Any, tmp_path: Path) -> None:
    reads(tmp_path / "x.ckpt", lambda: read_checkpoint(tmp_path / "x.ckpt"))


@pytest.mark.parametrize("name", ["identity.json", "a.arrow"])
def test_stored_log_probs_are_read_as_data(name: str, reads: Any, tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_text(json.dumps(AnswerStore(tmp_path / "new", {"model": "m"}).identity))
    reads(tmp_path / name, lambda: AnswerStore(tmp_path, {"model": "m"}).reload(), fails=name == "identity.json")


# --- what runs leave


def test_a_learning_record_is_read_as_data(reads: Any, tmp_path: Path) -> None:
    reads(tmp_path / "learning.arrow", lambda: RecordedLosses.read(tmp_path / "learning.arrow"))


def test_findings_of_a_run_are_read_as_data(reads: Any, tmp_path: Path) -> None:
    reads(tmp_path / "health.jsonl", lambda: read_findings(tmp_path / "health.jsonl"))


def test_what_a_run_left_is_read_as_data(reads: Any, tmp_path: Path) -> None:
    names = ("provenance.json", "startup.json", "before_after.json", "done.json", "stage.yaml", "health.jsonl")
    for name in (*names, "evaluation/results.json", "evaluation/scored.jsonl", "metrics.csv"):
        folder = tmp_path / name.replace("/", "-")
        reads(folder / name, partial(read_stage, folder), Path(name).name, fails=not name.endswith("csv"))
    reads(tmp_path / "any.json", lambda: read_json(tmp_path / "any.json", "what it is", "remove it"))


def test_what_a_stage_was_done_with_is_read_as_data(reads: Any, tmp_path: Path) -> None:
    stage = StagePlan("sft", tmp_path / "sft", {}, None, None)
    reads(tmp_path / "sft" / "done.json", lambda: require_start(stage.folder), "done.json")


def test_messages_of_other_ranks_are_read_as_text(reads: Any, tmp_path: Path) -> None:
    workers = WorkerGroup(tmp_path, 0, 2, "name")
    workers.messages.mkdir(parents=True, exist_ok=True)
    reads(workers.messages / "x-1", lambda: workers.require_same("data", "x", "own"), "rank 1 has another than rank 0")


def test_a_kept_reply_of_a_judge_is_read_as_text(reads: Any, tmp_path: Path) -> None:
    with serving(lambda route, body: (200, {"choices": [{"message": {"content": "8"}}]})) as url:
        judge = RubricLLMJudge(url, "m", cache_dir=tmp_path)
        judge.ask(["?"], ["row 1"], float)
    (file,) = tmp_path.rglob("*.txt")
    reads(file, lambda: judge.ask(["?"], ["row 1"], lambda reply: 0.0), fails=False)


def test_generation_settings_are_read_as_data(reads: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    reads(tmp_path / "generation_config.json", lambda: stored_settings(str(tmp_path)), tmp_path.name)


def test_a_lock_is_read_as_data(reads: Any, tmp_path: Path) -> None:
    def take() -> None:
        lock = FolderLock(tmp_path, "a run", "another")
        lock.acquire()
        lock.release()

    reads(tmp_path / ".lock", take, fails=False)


def test_answers_of_an_evaluation_are_read_as_data(reads: Any, tmp_path: Path) -> None:
    served: Any = type("Served", (), {"digest": lambda self: "x"})()
    sampler: Any = object()
    reads(tmp_path / "answers.jsonl", lambda: answer(served, [], sampler, keep=tmp_path / "answers.jsonl"), fails=False)


@pytest.mark.parametrize("name", FORMATS)
def test_questions_and_answers_of_a_benchmark_are_read_as_data(name: str, reads: Any, tmp_path: Path) -> None:
    reads(tmp_path / "q.json", lambda: FORMATS[name].questions(tmp_path / "q.json"))
    reads(tmp_path / "a.json", lambda: FORMATS[name].answered(tmp_path / "a.json"), fails=False)


# --- lists of files in files, and what rows name


def saved(folder: Path, **columns: Any) -> Path:
    from datasets import Dataset

    Dataset.from_dict({"text": ["a"], **columns}).save_to_disk(str(folder))
    return folder


@pytest.mark.parametrize("name", ["../other/data-00000-of-00001.arrow", "/etc/passwd", "sub/x.arrow", ".."])
def test_a_saved_set_names_no_file_outside_of_its_folder(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "saved")
    saved(tmp_path / "other")
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "_data_files": [{"filename": name}]}))
    with pytest.raises(ValueError, match=r"^\S*saved: .*state\.json names .*outside of the folder"):
        Source(str(folder)).open()
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    with pytest.raises(ValueError, match=r"^\S*saved: .*dataset_dict\.json names .*outside of the folder"):
        Source(str(folder)).open()


@pytest.mark.parametrize("kind", ["Image", "Audio", "Video", "Pdf", "Nifti"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_row_that_names_an_address_is_not_followed(kind: str, nested: bool, tmp_path: Path) -> None:
    calls: list[str] = []

    def reply(route: str, body: Any) -> tuple[int, Any]:
        calls.append(route)
        return 404, None

    from datasets import Dataset, Features, List, Value

    plain: Any = {"bytes": Value("binary"), "path": Value("string")}
    with serving(reply) as url:
        stored = {"bytes": None, "path": f"{url}/x.png"}
        features = Features({"media": List(plain) if nested else plain})
        folder = tmp_path / "saved"
        Dataset.from_dict({"media": [[stored] if nested else stored]}, features=features).save_to_disk(str(folder))
        info = json.loads((folder / "dataset_info.json").read_text())
        feature = {"_type": kind}
        info["features"]["media"] = {"feature": feature, "_type": "List"} if nested else feature
        (folder / "dataset_info.json").write_text(json.dumps(info))
        row = next(Source(str(folder)).open().take(np.arange(1)))
    assert row.values["media"] == ([stored] if nested else stored)
    assert calls == []


def test_what_datasets_stores_as_json_is_still_read(tmp_path: Path) -> None:
    from datasets import Dataset, Features, Json, Value

    features = Features({"text": Value("string"), "more": Json()})
    Dataset.from_dict({"text": ["a"], "more": [{"b": 1}]}, features=features).save_to_disk(str(tmp_path / "s"))
    assert next(Source(str(tmp_path / "s")).open().take(np.arange(1))).values == {"text": "a", "more": {"b": 1}}


def test_a_pickled_type_in_a_parquet_file_is_not_unpickled(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    mark = {b"ARROW:extension:name": b"arrow.py_extension_type"}
    mark[b"ARROW:extension:metadata"] = hostile.KINDS["pickle"](tmp_path / "canary")
    schema = pa.schema([pa.field("text", pa.string(), metadata=mark)])
    pa.parquet.write_table(pa.table({"text": ["a"]}, schema=schema), tmp_path / "x.parquet")
    assert next(Source(str(tmp_path / "x.parquet")).open().take(np.arange(1))).values == {"text": "a"}
    with pa.ipc.new_file(str(tmp_path / "round-0000.arrow"), schema) as writer:
        writer.write_table(pa.table({"text": ["a"]}, schema=schema))
    with pytest.raises(ValueError, match="not a round"):
        assert Round(tmp_path / "round-0000.arrow").rollouts
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/other/model.safetensors", ".."])
def test_an_index_of_weights_names_no_file_outside_of_its_folder(name: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    index = {"weight_map": {"model.embed_tokens.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index\.json: it names .*, which is outside of the folder"):
        PolicySpec(path=str(folder)).build()
    (folder / "model.safetensors").rename(folder / "part.safetensors")  # else that one is read, whatever an index says
    with pytest.raises(ValueError, match=r"index\.json: it names .*, which is outside of the folder"):
        WeightFiles.find(str(folder))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_config_asks_for_no_code_of_the_hub(key: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: "evil/kernel"}))
    with pytest.raises(ValueError, match=r"model: the config asks for code from the hub \(attn_implementation: 'evil"):
        PolicySpec(path=str(folder)).load_config()


@pytest.mark.parametrize("model_type", ["llama", "evil"])
def test_code_in_a_model_s_folder_is_not_run_unasked(model_type: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "evil.py").write_bytes(hostile.KINDS["python"](tmp_path / "canary"))
    names = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M", "AutoModelForSequenceClassification": "evil.M"}
    for file, more in (
        ("config.json", {"auto_map": names, "model_type": model_type}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, "tokenizer_class": "T"}),
    ):
        known = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**known, **more}))
    for load in (
        PolicySpec(path=str(folder)).build,
        TokenizerSpec(str(folder)).load,
        lambda: RewardModelJudge(str(folder)).load(),
        lambda: PairRMJudge(str(folder)).load(),
        lambda: load_served(str(folder)),
    ):
        said = _said(load)
        assert not said or str(folder) in said
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.mkdir('CANARY') }}",
        "{{ lipsum.__globals__['os'].mkdir('CANARY') }}",
        "{{ self.__init__.__globals__.__builtins__.__import__('os').mkdir('CANARY') }}",
        "{% include 'CANARY' %}",
        "{% import 'os' as os %}{{ os.mkdir('CANARY') }}",
        "{{ messages.append(1) }}",
        "{{ tools.__reduce__() }}",
    ],
)
def test_a_template_reaches_nothing_outside_of_its_sandbox(template: str, tmp_path: Path) -> None:
    folder = tiny.tokenizer_folder(tmp_path / "tok")
    text = template.replace("CANARY", str(tmp_path / "canary"))
    (folder / "chat_template.jinja").write_text(text)
    tokenizer = TokenizerSpec(str(folder)).load()
    with pytest.raises(ValueError, match="the chat template cannot render the row") as error:
        ChatTemplate(tokenizer, text).render([{"role": "user", "content": "w5"}])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "canary").exists()


def header(length: int, text: bytes) -> bytes:
    return length.to_bytes(8, "little") + text


def entries(**named: Any) -> bytes:
    text = json.dumps({name: {"dtype": "F32", "shape": [2], **entry} for name, entry in named.items()}).encode()
    return header(len(text), text) + b"\0" * 8


@pytest.mark.parametrize(
    "content",
    [
        b"",
        header(2**63, b"{}"),
        header(2**40, b"{}"),
        header(2, b"[]"),
        header(200_000, b"[" * 200_000),
        entries(a={"data_offsets": [0, 2**62]}),
        entries(a={"data_offsets": [8, 0]}),
        entries(a={"data_offsets": [0, 8], "shape": [2**62, 2**62]}),
        entries(a={"data_offsets": [0, 8]}, b={"data_offsets": [4, 8], "shape": [1]}),
        entries(a={"data_offsets": [0, 8], "dtype": "__import__('os')"}),
    ],
    ids=["empty", "2**63", "2**40", "list", "deep", "beyond", "backwards", "huge shape", "overlap", "dtype"],
)
def test_a_safetensors_file_that_lies_about_itself_is_one_line(content: bytes, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(content)
    assert str(folder) in _said(PolicySpec(path=str(folder)).build)
