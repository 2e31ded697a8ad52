"""The procedural world: attributes do what they say and captions tell the truth."""

import random

import pytest
import torch

from bs_ray.tiny import captions, faces
from bs_ray.tiny.nets import build_tokenizer


def test_renders_are_images_and_repeatable() -> None:
    scene = faces.sample_scenes(6, seed=3)
    images = faces.render(scene)
    assert images.shape == (6, 3, 64, 64)
    assert images.min() >= -1 and images.max() <= 1
    assert torch.equal(images, faces.render(faces.sample_scenes(6, seed=3)))
    assert torch.equal(faces.render_wild(scene, 1), faces.render_wild(scene, 1))
    assert not torch.equal(faces.render_wild(scene, 1), faces.render_wild(scene, 2))


def test_a_face_does_not_depend_on_its_batch() -> None:
    scene = faces.sample_scenes(5, seed=0)
    alone = faces.render({name: column[2:3] for name, column in scene.items()})
    assert torch.allclose(alone[0], faces.render(scene, chunk=2)[2], atol=1e-6)


@pytest.mark.parametrize("attribute", faces.ATTRIBUTES)
def test_every_attribute_shows(attribute: str) -> None:
    scene = {name: column.repeat(2) for name, column in faces.sample_scenes(1, seed=1).items()}
    scene["man"][:] = 1.0
    scene[attribute] = torch.tensor([0.1, 0.9])
    low, high = faces.render(scene)
    assert (low - high).abs().max() > 0.2


def test_attributes_are_independent() -> None:
    scene = faces.sample_scenes(20_000, seed=0)
    matrix = faces.attribute_matrix(scene)
    correlation = torch.corrcoef(matrix.T) - torch.eye(len(faces.ATTRIBUTES))
    coupled = [
        (faces.ATTRIBUTES[i], faces.ATTRIBUTES[j]) for i, j in (correlation.abs() > 0.03).nonzero()
    ]
    assert set(map(frozenset, coupled)) == {frozenset({"beard", "man"})}


def test_the_same_person_keeps_identity_only() -> None:
    scene = faces.sample_scenes(50, seed=0)
    other = faces.same_person(scene, seed=1)
    assert all(torch.equal(scene[name], other[name]) for name in faces.IDENTITY)
    assert not torch.equal(scene["smile"], other["smile"])


def test_captions_are_true() -> None:
    scene = faces.sample_scenes(100, seed=0)
    for row in range(100):
        text = captions.caption(scene, row, random.Random(row))
        for name, (low, high) in captions.PHRASES.items():
            named = [p.strip() for p in text.split(",")]
            if any(phrase in named for phrase in high):
                assert scene[name][row] > 0.6
            if any(phrase in named for phrase in low):
                assert scene[name][row] < 0.4


def test_what_a_caption_tells_can_be_read_back() -> None:
    slots = list(captions.slots())
    text = "a photo of a woman, sad, wearing glasses, on a blue background, in a white shirt"
    named = dict(zip(slots, captions.slot_values(text), strict=True))
    blue, white = (1 + list(faces.PALETTE).index(colour) for colour in ("blue", "white"))
    expected = {"smile": 1, "glasses": 2, "noun": 2, "background": blue, "shirt": white}
    assert {name: way for name, way in named.items() if way} == expected


def test_the_tokenizer_knows_every_word_and_survives_others() -> None:
    words = captions.vocabulary()
    tokenizer = build_tokenizer(words, pad_token="!")
    assert tokenizer.eos_token_id == len(tokenizer) - 1  # CLIP pools at the highest id
    whole = [word for word in words if len(tokenizer.tokenize(word)) == 1]
    assert len(whole) > 0.8 * len(words)
    ids = tokenizer("a woman, smiling, Größe 你好").input_ids
    assert max(ids) == tokenizer.eos_token_id and ids[0] == tokenizer.bos_token_id
