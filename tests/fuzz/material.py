"""Real files of every kind that the library reads, as small as they can be; parsers are given them with one changed."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

import datasets.config
import numpy as np
import torch
from datasets import Dataset, Features, Image, List, Value
from hub.finished_run import describe, perturb
from PIL import Image as Picture
from safetensors.numpy import save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from hf_unlearn.audit.embedding_files import save_embeddings
from hf_unlearn.audit.embeddings import Embeddings
from hf_unlearn.audit.endpoint_cache import EmbeddingCache
from hf_unlearn.audit.pictures import list_pictures
from hf_unlearn.audit.recording import plan_audit
from hf_unlearn.audit.run import run_audit
from hf_unlearn.hub.evidence import write_evidence
from hf_unlearn.models.adapters import add_adapter
from hf_unlearn.models.checkpoint_forms import save_encoder
from hf_unlearn.models.moco import MoCoConfig, MoCoModel
from hf_unlearn.models.simclr import SimCLRConfig, SimCLRModel
from hf_unlearn.models.small_clip import train_tokenizer

datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.1  # as `tests/conftest.py` has it
Material = Callable[[Path], object]
WORDS = ["a red apple", "a green pear", "a yellow banana", "a black cat", "a small boat", "a tall tree"]
SIZE = {"height": 16, "width": 16}


def clip(folder: Path, form: str = "transformers") -> tuple[CLIPModel, CLIPProcessor]:
    """A CLIP of 16 dimensions and its processor."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(WORDS)
    common = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "projection_dim": 16}
    ends = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    text = {**common, "num_hidden_layers": 1, "vocab_size": len(tokenizer), "max_position_embeddings": 32, **ends}
    vision = {**common, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    pictures = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=SIZE)
    processor = CLIPProcessor(image_processor=pictures, tokenizer=tokenizer)
    save_encoder(model, processor, folder, form)
    return model, processor


def open_clip(folder: Path) -> None:
    """The same in OpenCLIP's form."""
    clip(folder, "open_clip")


def sentence_transformers(folder: Path) -> None:
    """The same in sentence-transformers' form."""
    clip(folder, "sentence_transformers")


def adapter(folder: Path) -> None:
    """A LoRA adapter in `adapter/` beside its base model in `base/`, with the records that name it."""
    from peft import LoraConfig

    model, processor = clip(folder / "base")
    adapted = add_adapter(model, LoraConfig(r=1, target_modules=["q_proj"]))
    adapted.save_pretrained(folder / "adapter")
    processor.save_pretrained(folder / "adapter")
    (folder / "adapter" / "unlearning.json").write_text(json.dumps({"base_model": {"sha256": None}}))


def shards(folder: Path) -> None:
    """A CLIP in two files and an index."""
    model, _ = clip(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")


def views(folder: Path) -> None:
    """SimCLR and MoCo, each in its folder."""
    small = {"width": 4, "projection_dim": 6, "image_size": 16}
    SimCLRModel(SimCLRConfig(**small)).save_pretrained(folder / "simclr")
    MoCoModel(MoCoConfig(**small, queue_size=8)).save_pretrained(folder / "moco")
    for name in ("simclr", "moco"):
        pictures = CLIPImageProcessor(size=SIZE, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        pictures.save_pretrained(folder / name)


def pictures(folder: Path, count: int = 6) -> None:
    """Pictures of noise in `pictures/`, with captions, owners and groups in `captions.csv`."""
    (folder / "pictures").mkdir(parents=True)
    random = np.random.default_rng(0)
    names = [f"{number}.png" for number in range(count)]
    for name in names:
        Picture.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / "pictures" / name)
    with (folder / "captions.csv").open("w", newline="") as file:
        rows = [(name, WORDS[number % 6], "ada", f"g{number}") for number, name in enumerate(names)]
        csv.writer(file).writerows([("image", "caption", "owner", "group"), *rows])


def formats(folder: Path) -> None:
    """A picture in every format that is opened."""
    folder.mkdir(parents=True, exist_ok=True)
    image = Picture.fromarray(np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8))
    for suffix in ("png", "jpg", "webp", "gif", "bmp", "tiff", "ppm", "jp2", "avif"):
        exif = {"exif": Picture.Exif()} if suffix in ("jpg", "webp") else {}
        image.save(folder / f"picture.{suffix}", **exif)


def run(folder: Path) -> None:
    """A finished run in `run/`, with its base model in `base/` and the evidence of the removal."""
    clip(folder / "base")
    (folder / "base" / "README.md").write_text("---\nlicense: mit\n---\n")
    clip(folder / "run")
    perturb(folder / "run")
    pictures(folder)
    features = Features({"image": Image(), "captions": List(Value("string")), "id": Value("string")})
    files = [str(file) for file in sorted((folder / "pictures").iterdir())]
    rows = {"image": files, "captions": [[word] for word in WORDS], "id": WORDS}
    describe(folder / "run", folder / "base", Dataset.from_dict(rows, features=features))
    write_evidence(folder / "run")


def plan(folder: Path) -> None:
    """Pictures and a committed plan of them in `plan/`."""
    pictures(folder)
    plan_audit(folder / "pictures", folder / "plan", captions=folder / "captions.csv")


def embeddings(folder: Path) -> None:
    """Pictures, and their embeddings in every form of file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pictures(folder)
    found = list_pictures(folder / "pictures")
    random = np.random.default_rng(0)
    array, texts = random.normal(size=(len(found), 3, 4)), random.normal(size=(len(found), 4))
    np.save(folder / "before.npy", array)
    save_file({"images": array, "texts": texts}, folder / "before.safetensors")
    parts = Embeddings(
        array, texts, np.arange(len(found)), array, array[:, 0], array[:, 0], True, {"kind": "checkpoint"}
    )
    drawn = {"seed": 1, "count": 3, "original_first": True, "views": {"family": "cifar", "size": 16}}
    save_embeddings(parts, found, folder / "recorded.safetensors", drawn, [[word] for word in WORDS])
    rows = [(picture.name, row.tolist()) for picture, group in zip(found, array, strict=True) for row in group]
    table = pa.table({"image": [name for name, _ in rows], "embedding": [row for _, row in rows]})
    pq.write_table(table, folder / "before.parquet")
    with EmbeddingCache(folder / "cache.sqlite") as cache:
        cache.put({"question": array[0, 0]})


def report(folder: Path) -> None:
    """A finished audit in `report/` of the embeddings beside it."""
    embeddings(folder)
    np.save(folder / "after.npy", np.load(folder / "before.npy") + 0.1)
    run_audit(folder / "before.npy", folder / "after.npy", folder / "pictures", folder / "report")


def data(folder: Path) -> None:
    """Data sets in every form: folders with metadata, a data set's README, saved to disk, parquet."""
    rows = [{"file_name": f"{number}.png", "caption": word, "owner": "ada"} for number, word in enumerate(WORDS)]
    for form in ("csv", "jsonl", "parquet", "hub"):
        pictures(folder / form)
        (folder / form / "captions.csv").unlink()
    with (folder / "csv" / "pictures" / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "jsonl" / "pictures" / "metadata.jsonl").write_text(lines)
    Dataset.from_list(rows).to_parquet(folder / "parquet" / "pictures" / "metadata.parquet")
    configs = [{"config_name": "a", "default": True, "data_files": [{"split": "train", "path": "pictures/*.png"}]}]
    (folder / "hub" / "README.md").write_text("---\nconfigs: " + json.dumps(configs) + "\n---\n# Data\n")
    features = Features({"image": Image(), "captions": List(Value("string")), "id": Value("string")})
    files = [str(file) for file in sorted((folder / "csv" / "pictures").glob("*.png"))]
    saved = Dataset.from_dict({"image": files, "captions": [[w] for w in WORDS], "id": WORDS}, features=features)
    saved.save_to_disk(folder / "saved")
    saved.to_parquet(folder / "rows" / "train.parquet")


def streams(folder: Path) -> None:
    """Shards to stream, as parquet in `parquet/` and as tar files in `tar/`, and a request of one row in `ids.txt`."""
    import io
    import tarfile

    pictures(folder)
    files = sorted((folder / "pictures").iterdir())
    features = Features({"image": Image(), "captions": Value("string"), "id": Value("string")})
    for split in ("train", "validation", "test"):
        ids = [f"{split}-{number}" for number in range(len(files))]
        rows = {"image": [str(file) for file in files], "captions": WORDS, "id": ids}
        Dataset.from_dict(rows, features=features).to_parquet(folder / "parquet" / f"{split}-00000.parquet")
        (folder / "tar").mkdir(exist_ok=True)
        with tarfile.open(folder / "tar" / f"{split}-00000.tar", "w") as archive:
            for row_id, file, word in zip(ids, files, WORDS, strict=True):
                archive.add(file, f"{row_id}.png")
                info = tarfile.TarInfo(f"{row_id}.txt")
                info.size = len(word)
                archive.addfile(info, io.BytesIO(word.encode()))
    (folder / "ids.txt").write_text("train-0\n")


def texts(folder: Path) -> None:
    """Requests, settings and records of runs that are text alone."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {
        "ids.txt": "a\nb\n# c\n",
        "ids.csv": "id,owner\na,ada\nb,bob\n",
        "ids.json": '{"ids": ["a", "b", 3]}',
        "run.yaml": "methods: [fine_tune, neg_grad]\nlearning_rate: 1e-3\noutput_dir: out\nmodel: {width: 8}\n"
        "fine_tune: {num_train_epochs: 2}\npretrain: {seed: 1}\ndataset_name: openmoji\nbf16: false\n",
        "benchmark.yaml": "family: clip\ntrials: [0, 1]\nablation: true\nalpha: [0.5]\nbeta: [1]\n"
        "options: {config: clip_openmoji, methods: [retrain, fine_tune]}\n",
        "run.json": '{"schema": 1, "key": {"seed": 0, "x": [1]}, "finished": {"retrain": "ab"}}',
        "checkpoint.json": '{"files": {"a": "b"}, "seconds": 1.5}',
        "trials.json": '{"schema": 1, "before": 3.5, "rows": [{"method": "fine_tune", "setting": {"learning_rate": '
        '0.001}, "key": "k", "estimated_gap": 3.0, "low_estimated_gap": 1.0, "high_estimated_gap": 4.0}]}',
        "results.json": '{"family": "image-text", "gap_keys": ["cosine_retain"], "rows": [{"method": "fine_tune", '
        '"avg_gap": 3.5, "metrics": {"estimated_gap": 2.0}}, {"method": "scrub", "avg_gap": 4, "estimated_gap": 3}]}',
        "answer.json": '{"data": [{"index": 1, "embedding": [1.0, 2.0]}, {"index": 0, "embedding": [0.5, null]}]}',
        "plain.json": "[[1.0, 2.0], [3.0, 4.0]]",
        "private_rows.json": json.dumps(
            {
                **{"requests": {"a" * 64: ["b" * 64]}, "held_out": {"test": ["c" * 64]}, "parts": {}},
                "levels": {"b" * 64: 0.25},
            }
        ),
        "secret_seed.json": '{"seed": 12345}',
        "run_time.json": '{"run_time_seconds": 2.5}',
    }
    for name, text in written.items():
        (folder / name).write_text(text)
    trial = folder / "trial-0"
    trial.mkdir()
    for method in ("retrain", "fine_tune", "scrub"):
        row = {"key": "k", "cosine_retain": 80.0, "cosine_unlearn": 20.0, "estimated_gap": 3.0}
        (trial / f"{method}.json").write_text(json.dumps(row))
    record = {
        **{"schema": 1, "config": "clip_openmoji", "command": "x", "data": "d", "request": "r", "versions": {"a": "1"}},
        **{"seeds": [0, 1], "metrics": [{"cosine_retain": 80.0}, {"cosine_retain": 81.0}]},
    }
    (folder / "oracle.json").write_text(json.dumps(record))
    save_file({"unlearn": np.ones((2, 3), dtype=np.float32)}, folder / "alignment.safetensors")
    save_file({"recovery": np.ones(3), "images:retain": np.ones((2, 3))}, folder / "observed.safetensors")


_MADE: dict[Material, Path] = {}


def made(material: Material) -> Path:
    """The folder of a material, made once a process."""
    if material not in _MADE:
        _MADE[material] = Path(mkdtemp(prefix="fuzz-"))
        material(_MADE[material] / "it")
    return _MADE[material] / "it"
