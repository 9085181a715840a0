"""Every file of others' that the library reads: one line a parser, with the file that is changed and who reads it."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from fuzz import material
from fuzz.material import Material

from hf_unlearn.audit.audited_pictures import collect_pictures, read_table
from hf_unlearn.audit.embedding_files import read_embeddings
from hf_unlearn.audit.endpoint_answers import parse_answer, retry_after
from hf_unlearn.audit.endpoint_cache import EmbeddingCache
from hf_unlearn.audit.pictures import list_pictures
from hf_unlearn.audit.plan import read_plan, read_view_seed
from hf_unlearn.audit.repeat import repeat_audit
from hf_unlearn.audit.settings import unfinished_seed
from hf_unlearn.benchmarks.attack_signals import AttackSignals
from hf_unlearn.benchmarks.benchmark import Benchmark
from hf_unlearn.benchmarks.oracles import load_oracle
from hf_unlearn.benchmarks.selection import read_candidates
from hf_unlearn.cli.guard import _sentence
from hf_unlearn.data.images import check_images
from hf_unlearn.data.requests import read_request
from hf_unlearn.data.sources import load_source
from hf_unlearn.data.streamed_source import stream_source
from hf_unlearn.errors import UserError
from hf_unlearn.figures.drawing import shows_samples
from hf_unlearn.hub.card import render_card, write_card
from hf_unlearn.hub.past_requests import PastRequests
from hf_unlearn.hub.recorded_rows import RecordedRows
from hf_unlearn.hub.screening import screen
from hf_unlearn.hub.verification import check_card, verify_repo
from hf_unlearn.models.loading import load_encoder, load_model
from hf_unlearn.models.weights import difference, stored_tensors, weights_sha256
from hf_unlearn.records.schemas import EvaluationRecord, UnlearningManifest
from hf_unlearn.runs.command_line import parse_run
from hf_unlearn.runs.pretrain import run_time_seconds
from hf_unlearn.runs.resuming import RunState
from hf_unlearn.runs.tuning import _stored, _untouched
from hf_unlearn.training.checkpoints import damage

SECONDS = 60  # of the processor: what takes longer hangs
REPORT = "report/audit.json"
Folder = Callable[[Path], Any]


@dataclass(frozen=True)
class Parser:
    """A parser and a file of its own.

    Args:
        name: What the parser is called, and its folder in the corpus.
        material: Makes real files.
        file: The one of them that is changed, by its path in their folder.
        read: Reads the folder with the changed file.
    """

    name: str
    material: Material
    file: str
    read: Folder


class Hang(BaseException):
    """A parser took longer than it may."""


def _pictures(folder: Path) -> Any:
    return list_pictures(folder / "pictures")


def _embeddings(name: str) -> Folder:
    return lambda folder: read_embeddings(folder / name, _pictures(folder), [()] * 6).alignments()


def _config(folder: Path) -> Any:
    return parse_run(["--config", str(folder / "run.yaml")])


def _benchmark(folder: Path) -> Any:
    benchmark = Benchmark.load(folder / "benchmark.yaml")
    return [parse_run(benchmark.argv(trial)) for trial in benchmark.trials], benchmark.variants()


def _records(folder: Path) -> Any:
    manifest, evaluation = UnlearningManifest.load(folder / "run"), EvaluationRecord.load(folder / "run")
    return render_card(manifest, evaluation)


def _verify(folder: Path) -> Any:
    return verify_repo(folder / "run", base=folder / "base", salt="s")


def _publish(folder: Path) -> Any:
    return screen({path.name: path for path in (folder / "run").iterdir() if path.is_file()})


def _cache(folder: Path) -> Any:
    with EmbeddingCache(folder / "cache.sqlite") as cache:
        cache.get("question")
        return cache.put({})


def _answer(name: str, count: int, openai: bool) -> Folder:
    def read(folder: Path) -> Any:
        try:
            return parse_answer((folder / name).read_bytes().decode("utf-8", "replace"), count, openai=openai)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:  # as its caller does
            raise UserError(f"no such answer: {type(error).__name__}") from error

    return read


def _plan(folder: Path) -> Any:
    plan = read_plan(folder / "plan" / "plan.json")
    read_view_seed(plan, folder / "plan", 1)
    return collect_pictures(folder / "pictures", plan=folder / "plan" / "plan.json")


def _data(form: str) -> Folder:
    return lambda folder: check_images(load_source(folder / form, caption_column="caption"))


def _saved(form: str) -> Folder:
    return lambda folder: check_images(load_source(folder / form, caption_column="captions"))


def _streamed(form: str, caption: str, image: str) -> Folder:
    def read(folder: Path) -> Any:
        given = folder / form, folder / "ids.txt"
        return stream_source(*given, image_column=image, caption_column=caption, max_eval_samples=4)

    return read


def _run_state(folder: Path) -> Any:
    state = RunState(folder, resume=True)
    state.require({"seed": 0})
    return state.has_finished("retrain")


def _trials(folder: Path) -> Any:
    path = folder / "trials.json"
    return _stored(path, True, {}), _untouched(path)


def _weights(folder: Path) -> Any:
    return weights_sha256(folder), difference(*[stored_tensors(folder)] * 2), load_model(str(folder))


def _of(file: str, name: str, parsers: "tuple[Any, ...]") -> Parser:
    return Parser(name, *parsers[:1], file, *parsers[1:])


CLIP_FILES = ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
RUN_FILES = (
    *("README.md", "unlearning.json", "evaluation.json", "config.json", "tokenizer_config.json", "model.safetensors"),
    *("assets/alignment_matrices.png", "removal.intoto.json", "bom.cdx.json", "digests.sha256"),
)
CLIP = (material.clip, lambda folder: load_encoder(str(folder)))
RUN = (material.run, _verify)

PARSERS: dict[str, Parser] = {
    parser.name: parser
    for parser in (
        # Records of runs, and what verifying, publishing and going on read.
        Parser("manifest", material.run, "run/unlearning.json", _records),
        Parser("evaluation", material.run, "run/evaluation.json", _records),
        *(_of(f"run/{file}", f"verify-{Path(file).name}", RUN) for file in RUN_FILES),
        Parser("card-results", material.run, "results.json", lambda folder: write_card(folder / "run")),
        Parser("card-check", material.run, "run/README.md", lambda folder: check_card(folder / "run")),
        Parser("screen-weights", material.run, "run/model.safetensors", _publish),
        Parser("screen-text", material.run, "run/tokenizer_config.json", _publish),
        Parser(
            "heatmap",
            material.run,
            "run/assets/alignment_matrices.png",
            lambda folder: shows_samples(folder / "run/assets/alignment_matrices.png"),
        ),
        Parser(
            "past-manifest",
            material.run,
            "run/unlearning.json",
            lambda folder: PastRequests.read(folder / "run").statuses(),
        ),
        Parser("private-rows", material.texts, "private_rows.json", RecordedRows.load),
        Parser("run-state", material.texts, "run.json", _run_state),
        Parser("checkpoint", material.texts, "checkpoint.json", damage),
        Parser("run-time", material.texts, "run_time.json", run_time_seconds),
        Parser("trials", material.texts, "trials.json", _trials),
        Parser("results", material.texts, "results.json", lambda folder: read_candidates(folder / "results.json")),
        Parser("trial", material.texts, "trial-0/retrain.json", lambda folder: read_candidates(folder / "trial-0")),
        Parser(
            "trial-method", material.texts, "trial-0/scrub.json", lambda folder: read_candidates(folder / "trial-0")
        ),
        Parser("oracle", material.texts, "oracle.json", load_oracle),
        Parser("oracle-alignment", material.texts, "alignment.safetensors", load_oracle),
        Parser(
            "observed",
            material.texts,
            "observed.safetensors",
            lambda folder: AttackSignals.load(folder / "observed.safetensors"),
        ),
        # What a user gives.
        Parser("config", material.texts, "run.yaml", _config),
        Parser("benchmark", material.texts, "benchmark.yaml", _benchmark),
        Parser("request-text", material.texts, "ids.txt", lambda folder: read_request(folder / "ids.txt")),
        Parser("request-csv", material.texts, "ids.csv", lambda folder: read_request(folder / "ids.csv")),
        Parser("request-json", material.texts, "ids.json", lambda folder: read_request(folder / "ids.json")),
        # Data sets.
        Parser("metadata-csv", material.data, "csv/pictures/metadata.csv", _data("csv")),
        Parser("metadata-jsonl", material.data, "jsonl/pictures/metadata.jsonl", _data("jsonl")),
        Parser("metadata-parquet", material.data, "parquet/pictures/metadata.parquet", _data("parquet")),
        Parser("data-readme", material.data, "hub/README.md", lambda folder: load_source(folder / "hub")),
        Parser("saved-info", material.data, "saved/dataset_info.json", _saved("saved")),
        Parser("saved-state", material.data, "saved/state.json", _saved("saved")),
        Parser("saved-rows", material.data, "saved/data-00000-of-00001.arrow", _saved("saved")),
        Parser("rows", material.data, "rows/train.parquet", _saved("rows")),
        Parser(
            "stream-parquet",
            material.streams,
            "parquet/train-00000.parquet",
            _streamed("parquet", "captions", "image"),
        ),
        Parser("stream-tar", material.streams, "tar/train-00000.tar", _streamed("tar", "txt", "png")),
        *(
            Parser(f"picture-{kind}", material.formats, f"picture.{kind}", list_pictures)
            for kind in ("png", "jpg", "webp", "gif", "bmp", "tiff", "ppm", "jp2", "avif")
        ),
        # Audits.
        Parser("plan", material.plan, "plan/plan.json", _plan),
        Parser("view-secret", material.plan, "plan/view_secret.json", _plan),
        Parser(
            "captions",
            material.plan,
            "captions.csv",
            lambda folder: read_table(folder / "captions.csv", _pictures(folder)),
        ),
        Parser("seed", material.texts, "secret_seed.json", unfinished_seed),
        Parser("embeddings-npy", material.embeddings, "before.npy", _embeddings("before.npy")),
        Parser("embeddings-safetensors", material.embeddings, "before.safetensors", _embeddings("before.safetensors")),
        Parser("embeddings-recorded", material.embeddings, "recorded.safetensors", _embeddings("recorded.safetensors")),
        Parser("embeddings-parquet", material.embeddings, "before.parquet", _embeddings("before.parquet")),
        Parser("cache", material.embeddings, "cache.sqlite", _cache),
        Parser("answer-openai", material.texts, "answer.json", _answer("answer.json", 2, True)),
        Parser("answer-plain", material.texts, "plain.json", _answer("plain.json", 2, False)),
        Parser(
            "retry-after",
            material.texts,
            "ids.txt",
            lambda folder: retry_after((folder / "ids.txt").read_bytes().decode("latin-1")),
        ),
        Parser("repeat", material.report, REPORT, lambda folder: repeat_audit(folder / "report", folder / "again")),
        # Models of every family and form.
        *(_of(file, f"clip-{file}", CLIP) for file in CLIP_FILES),
        Parser("index", material.shards, "model.safetensors.index.json", _weights),
        *(
            Parser(
                f"{name}-{file}",
                material.views,
                f"{name}/{file}",
                lambda folder, name=name: load_encoder(str(folder / name)),
            )
            for name in ("simclr", "moco")
            for file in ("config.json", "preprocessor_config.json")
        ),
        *(
            Parser(
                f"adapter-{file}",
                material.adapter,
                f"adapter/{file}",
                lambda folder: load_encoder(str(folder / "adapter"), base=str(folder / "base")),
            )
            for file in ("adapter_config.json", "adapter_model.safetensors", "unlearning.json")
        ),
        *(
            Parser(f"open-clip-{file}", material.open_clip, file, lambda folder: load_encoder(str(folder)))
            for file in ("open_clip_config.json", "open_clip_model.safetensors")
        ),
        Parser("modules", material.sentence_transformers, "modules.json", lambda folder: load_encoder(str(folder))),
    )
}


@contextmanager
def one_changed(parser: Parser, content: bytes) -> Iterator[Path]:
    """A folder of real files with one of them changed; the others are links, and what was written goes again."""
    import shutil
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="fuzz-") as temporary:
        folder = Path(temporary) / "it"
        shutil.copytree(material.made(parser.material), folder, copy_function=os.link)
        path = folder / parser.file
        path.unlink()
        path.write_bytes(content)
        yield folder


def fault(parser: Parser, content: bytes) -> str | None:
    """What goes wrong when a parser reads a file of this content; None where it ends in a result or in one sentence."""

    def hang(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, hang)
    with one_changed(parser, content) as folder:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            parser.read(folder)
        except KeyboardInterrupt:
            raise
        except Hang:
            return f"took more than {SECONDS} seconds"
        except BaseException as error:  # noqa: BLE001  # any other than those above is what is looked for
            sentence = _sentence(error)
            if sentence is None:
                return _where(error)
            return None if sentence.strip() else f"an empty sentence of {type(error).__name__}"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)
    return None


def _where(error: BaseException) -> str:
    """An exception's kind and words, and the last line of this library that it went through."""
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{type(error).__name__}: {str(error)[:160]} ({' '.join(frames[1:][:12])})"
