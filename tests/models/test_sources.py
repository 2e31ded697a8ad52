"""One base in every layout that people have: found, checked, named and loaded alike."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from bs_ray.models import absolute_base, base_folder, identify_base, load_base
from bs_ray.models.base import BaseNotFound
from bs_ray.models.sources import at_hand, kind_of, single_file
from bs_ray.models.sources import bucket as bucket_module
from bs_ray.models.sources.cache import cache_folder
from bs_ray.storage import Entry, StorageError, Store
from tests.models import layouts
from tests.models.hub_server import COMMIT, Hub, serving
from tests.models.layouts import REPO, copy_settings, upload


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BS_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(scope="session")
def known(whole_base: Path) -> str:
    """The id of the base in every layout."""
    return identify_base(str(whole_base)).id


@pytest.mark.parametrize("layout", sorted(layouts.LAYOUTS))
def test_every_layout_is_the_same_base(
    layout: str, whole_base: Path, known: str, tmp_path: Path
) -> None:
    assert identify_base(layouts.in_layout(layout, whole_base, tmp_path)).id == known


@torch.no_grad()
def test_a_base_of_older_names_is_read_whole(whole_base: Path, tmp_path: Path) -> None:
    """As published: CLIP's tensors have other names there than today's transformers gives them."""
    old = load_base(layouts.in_layout("older names", whole_base, tmp_path))
    prompts = ["a photo of a person", "person, smiling"]
    expected = load_base(str(whole_base)).embed(prompts)
    torch.testing.assert_close(old.embed(prompts).tokens, expected.tokens, rtol=0, atol=0)


# --- what is refused ----------------------------------------------------------------------------
def _pickled(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")


def _no_vocabulary(folder: Path) -> None:
    (folder / "tokenizer_2" / "tokenizer.json").unlink()


def _no_weights(folder: Path) -> None:
    (folder / "text_encoder" / "model.safetensors").unlink()


def _cut_off(folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _link_to_nowhere(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.unlink()
    file.symlink_to(folder / "pruned")


def _lost_shard(folder: Path) -> None:
    layouts.shard(folder)
    next((folder / "unet").glob("*-00002-of-*")).unlink()


def _lost_index(folder: Path) -> None:
    layouts.shard(folder)
    next((folder / "unet").glob("*.index.json")).unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_pickled, r"unet, whose weights are \S+\.bin alone; expected safetensors.*safe_serial"),
        (_no_vocabulary, r"tokenizer_2, .*vocabulary.*; expected a tokenizer with its vocabulary"),
        (_no_weights, r"text_encoder, without weights; expected a \.safetensors file"),
        (_cut_off, r"vae/\S+, which is no whole safetensors file \([\d,]+ bytes instead of"),
        (_link_to_nowhere, r"unet/\S+, which is no whole safetensors file \(.*No such file"),
        (_lost_shard, r"unet, with 2 files of weights that its index does not make whole"),
        (_lost_index, r"unet, with 3 files of weights that its index does not make whole"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_by_name(
    spoil: Callable[[Path], None], message: str, whole_base: Path, tmp_path: Path
) -> None:
    spoil(folder := shutil.copytree(whole_base, tmp_path / "spoilt"))
    with pytest.raises(BaseNotFound, match=message):
        identify_base(str(folder))


# --- the hub ------------------------------------------------------------------------------------
@pytest.fixture
def hub(whole_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the base in both precisions, beside files that nobody here uses."""
    layouts.add_variant(folder := shutil.copytree(whole_base, tmp_path / "repo"))
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickled")
    (folder / "sd_xl_base_1.0.safetensors").write_bytes(b"all in one")
    (folder / "unet" / "model.onnx").write_bytes(b"onnx")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "README.md").write_text("a model card")
    repos = {REPO: folder, "studio/gated": folder, "studio/bare": bare}
    with serving(Hub(repos, {"studio/gated"})) as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)  # as HF_ENDPOINT does at the start
        template = f"{found.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield found


def test_of_the_hub_only_what_is_used_is_downloaded_and_once(hub: Hub, known: str) -> None:
    assert at_hand(REPO) is None and kind_of(REPO) == "hub"
    assert identify_base(REPO).id == known
    weights = sorted(name for name in hub.fetched if name.endswith(".safetensors"))
    expected = [
        *("judges/clip/model.safetensors", "judges/identity.safetensors"),
        *("judges/perceptual.safetensors", "judges/reader.safetensors"),
        *("text_encoder/model.fp16.safetensors", "text_encoder_2/model.fp16.safetensors"),
        *(f"{part}/diffusion_pytorch_model.fp16.safetensors" for part in ("unet", "vae")),
    ]
    assert weights == [f"{REPO}/{name}" for name in expected]
    assert not [name for name in hub.fetched if name.endswith((".bin", ".onnx"))]

    hub.fetched.clear()
    hub.repos.clear()  # from now on the cache alone knows it
    assert absolute_base(REPO) == f"{REPO}@{COMMIT}"
    assert base_folder(f"{REPO}@{COMMIT}") == base_folder(REPO) == at_hand(REPO)
    assert not hub.fetched


def test_an_interrupted_download_goes_on(hub: Hub, known: str) -> None:
    lost = base_folder(REPO) / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    lost.resolve().unlink()
    lost.unlink()
    hub.fetched.clear()
    assert identify_base(REPO).id == known
    assert hub.fetched == [f"{REPO}/vae/{lost.name}"]


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("studio/gated", r"gated, and this account has not been let in; .*/studio/gated, .*HF_TOK"),
        ("studio/nothing", r"neither a folder here nor a repository .* shows to this account"),
        (f"{REPO}@v9", r"portraits-xl@v9, which has no revision v9; expected a branch, a tag or"),
        ("studio/bare", r"has no model_index\.json; expected a repository in diffusers' layout"),
    ],
)
def test_the_hubs_refusals_say_what_to_do(hub: Hub, base: str, message: str) -> None:
    with pytest.raises(BaseNotFound, match=message):
        identify_base(base)


def test_without_a_network_the_cache_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(BaseNotFound, match=r"in the hub's cache .*cannot be reached.*bases fe"):
        identify_base(REPO)


# --- buckets ------------------------------------------------------------------------------------
def test_a_bucket_is_fetched_once_and_an_interrupted_fetch_goes_on(
    whole_base: Path, bucket: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(whole_base, bucket)
    bucket.write("unet/extra.bin", b"pickled")
    done: list[tuple[str, int]] = []
    cut_off: list[str] = []
    plain = Store.download

    def download(store: Store, entry: Entry, path: Path, report: Any) -> None:
        if entry.key.startswith("unet/diff") and not cut_off:
            path.write_bytes(store.read(entry.key)[:1000])
            cut_off.append(entry.key)
            raise StorageError("the node went away")
        done.append((entry.key, path.stat().st_size if path.exists() else 0))
        plain(store, entry, path, report)

    monkeypatch.setattr(Store, "download", download)
    with pytest.raises(StorageError, match="went away"):
        base_folder(bucket.uri)
    assert not [place for place in cache_folder().iterdir() if place.is_dir() and not place.suffix]
    folder = base_folder(bucket.uri)
    assert ("unet/diffusion_pytorch_model.safetensors", 1000) in done
    names = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}
    assert "unet/extra.bin" not in names and "model_index.json" in names

    done.clear()
    bucket_module.folder.cache_clear()  # as another process
    assert base_folder(bucket.uri) == folder and not done
    bucket.write("card.json", b"{}")  # the bucket has changed: another copy
    assert base_folder(bucket.uri) == folder, "this process stays with what it has"
    bucket_module.folder.cache_clear()
    assert base_folder(bucket.uri) != folder


def test_bytes_that_are_not_the_buckets_are_refused(bucket: Store, tmp_path: Path) -> None:
    bucket.write("a.safetensors", b"0123456789")
    [entry] = bucket.list()
    (tmp_path / "a").write_bytes(b"01X")  # of another file: resumed, it has the right length
    with pytest.raises(StorageError, match=r"got bytes with sha256 \S+; expected"):
        bucket.download(entry, tmp_path / "a")
    bucket.download(entry, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_a_prefix_without_a_base_is_refused(bucket: Store) -> None:
    bucket.write("readme.txt", b"nothing here")
    with pytest.raises(BaseNotFound, match=r"got s3://\S+, which has no model_index\.json"):
        identify_base(bucket.uri)


# --- single files -------------------------------------------------------------------------------
def test_a_single_file_needs_its_tokenizers_from_somewhere(
    whole_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts.write_single_file(whole_base, file := tmp_path / "portraits.safetensors")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BaseNotFound, match=r"there are no tokenizers.*portraits/.*open-clip-torch"):
        identify_base(str(file))


def test_a_single_file_of_another_shape_or_family_is_refused(
    whole_base: Path, tmp_path: Path
) -> None:
    layouts.write_single_file(whole_base, file := tmp_path / "portraits.safetensors")
    for part in ("tokenizer", "tokenizer_2"):
        shutil.copytree(whole_base / part, tmp_path / "portraits" / part)
    copy_settings(whole_base, tmp_path / "other")
    layouts.write_single_file(whole_base, tmp_path / "other.safetensors")
    config = tmp_path / "other" / "vae" / "config.json"
    config.write_text(config.read_text().replace('"latent_channels": 4', '"latent_channels": 8'))
    with pytest.raises(BaseNotFound, match=r"in whose vae \d+ of \d+ tensors are missing or"):
        identify_base(str(tmp_path / "other.safetensors"))
    flux = tmp_path / "flux.safetensors"
    shutil.copy(whole_base / "unet" / "diffusion_pytorch_model.safetensors", flux)
    with pytest.raises(BaseNotFound, match=r"no tensors under model\.diffusion_model\., .*folders"):
        identify_base(str(flux))
    assert file.is_file()


def test_clips_tokenizer_is_made_from_the_file_of_its_merges(tmp_path: Path) -> None:
    merges = ["p e", "r s", "pe rs", "o n</w>", "pers on</w>"]
    file = tmp_path / "bpe.txt.gz"
    file.write_bytes(gzip.compress("\n".join(['"version"', *merges, ""]).encode()))
    tokenizer = single_file._clip_tokenizer(file, "!")
    words = 512 + len(merges)
    assert tokenizer("person").input_ids == [words, words - 1, words + 1]
    # "!" comes first in the vocabulary, and "a" as a whole word 256 behind its letter.
    assert tokenizer.pad_token_id == 0
    assert tokenizer("a").input_ids[1] == 256 + ord("a") - ord("!")


def test_a_single_file_says_that_it_predicts_v(whole_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    layouts.write_single_file(whole_base, file := tmp_path / "v.safetensors")
    state = load_file(file) | {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    save_file(state, file)
    copy_settings(whole_base, file.with_suffix(""))
    found = json.loads((base_folder(str(file)) / "scheduler" / "scheduler_config.json").read_text())
    assert found["prediction_type"] == "v_prediction" and found["rescale_betas_zero_snr"]
