"""Training of face networks: pairs, dictionary, restorer, losses; judged by NumPy, SciPy and autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from hybrid.errors import InputError, RequestError, WeightsError
from restore import load_model
from restore.cli.app import app
from restore.faces.data import FacePairs, HeldOutFaces, as_batch, as_picture, coded, held_out, read_faces
from restore.faces.degradation import base, extending, sharp
from restore.faces.losses import fourier_loss, gradient_loss, pixel_loss
from restore.faces.losses_learned import (
    EqualisedConvolution,
    PartDiscriminator,
    PatchDiscriminator,
    balanced_weight,
    hinge_losses,
    identity_loss,
    logistic_losses,
    parts_of,
    perceptual_loss,
)
from restore.faces.training import FaceRecipe, load_face_recipe, run_faces
from restore.faces.training_learner import FaceLearner, LossPart
from restore.models.nafnet import NAFNet, NAFNetConfig
from restore.models.restoreformer import RestoreFormer, RestoreFormerConfig
from restore.training.record import write_result

SIZE = 32
TINY = {
    "num_heads": 2,
    "width": 8,
    "multipliers": [1, 2, 2],
    "blocks": 1,
    "attention": [2],
    "latent": 8,
    "entries": 16,
    "embed_dim": 4,
    "groups": 4,
    "resolution": SIZE,
}


def face(seed: int) -> np.ndarray:
    """A smooth picture of 8 bits with a few edges."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    return np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "faces"
    place.mkdir()
    for number in range(8):
        Image.fromarray(face(number)).save(place / f"{number}.png")
    return place


def recipe(**changes: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "name": "tiny",
        "task": "face",
        "licence": "CC0-1.0",
        "network": {"family": "restoreformer", "options": {"variant": "rohqd", **TINY}},
        "data": {"size": SIZE, "degradation": "face-sharp", "validation": 2},
        "losses": {"l1": 1.0, "gradient": 0.5, "restart": 0.8},
        "training": {
            "steps": 6,
            "batch": 2,
            "learning_rate": 1e-3,
            "log_every": 3,
            "validate_every": 3,
        },
    }
    return plain | changes


def written(tmp_path: Path, plain: dict[str, Any], name: str = "recipe.yaml") -> Path:
    path = tmp_path / name
    path.write_text(yaml.safe_dump(plain))
    return path


def tiny(variant: str) -> RestoreFormer:
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in TINY.items()}
    torch.manual_seed(0)
    return RestoreFormer(RestoreFormerConfig(variant=variant, **options))  # type: ignore[arg-type]


# Data ------------------------------------------------------------------------------------------------------------


def test_pairs_hold_the_degraded_face_above_the_sharp_one_and_repeat_by_their_seed() -> None:
    draw = FacePairs([face(0), face(1)], extending(SIZE))
    pair, target = draw(np.random.default_rng(5))
    again, _ = draw(np.random.default_rng(5))
    assert pair.shape == (6, SIZE, SIZE) and target.shape == (3, SIZE, SIZE) and pair.dtype == target.dtype == np.float32
    np.testing.assert_array_equal(pair, again)
    np.testing.assert_array_equal(pair[3:], target)
    assert np.abs(pair[:3] - target).mean() > 0.01
    assert not np.array_equal(pair, draw(np.random.default_rng(6))[0])


def test_a_crop_is_the_same_part_of_both_faces() -> None:
    unchanged = sharp(SIZE).model_copy(update={"shift": 0.0, "gray": 0.0, "mirror": 0.0})
    pair, target = FacePairs([face(3)], unchanged, crop=12)(np.random.default_rng(0))
    assert pair.shape == (6, 12, 12)
    np.testing.assert_allclose(pair[:3], target, atol=1e-7)
    whole = face(3).astype(np.float32).transpose(2, 0, 1) / 255
    places = [(r, c) for r in range(21) for c in range(21) if np.allclose(whole[:, r : r + 12, c : c + 12], target, atol=1e-6)]
    assert len(places) == 1


def test_held_out_faces_are_degraded_the_same_each_time_and_scored_in_rgb() -> None:
    faces = [face(1), face(2)]
    judge = HeldOutFaces(faces, degraded=True)
    network = tiny("restoreformer++").eval()
    figures = judge(network)
    assert figures == HeldOutFaces(faces, degraded=True)(network)
    rule = base(SIZE).model_copy(update={"mirror": 0.0})
    low = [rule.apply(each, np.random.default_rng(number)).image for number, each in enumerate(faces)]
    errors = [np.mean((a.astype(float) - b) ** 2) for a, b in zip(low, faces, strict=True)]
    assert figures["psnr_input"] == pytest.approx(np.mean([10 * np.log10(255**2 / error) for error in errors]))
    assert 1 <= figures["perplexity"] <= figures["codes"] <= 16


def test_faces_of_another_size_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="32 x 32 pixels; the recipe asks for aligned faces of 64 x 64"):
        read_faces(folder, 64)
    assert held_out([str(number) for number in range(8)], 2) == ["2", "6"]


def test_a_network_gets_its_own_range_of_values() -> None:
    picture = face(4)

    class Same(RestoreFormer):
        def decompose(self, x: torch.Tensor):
            assert x.min() < -0.1 and x.max() > 0.1
            return type("R", (), {"image": x, "quantised": type("Q", (), {"indices": torch.zeros(1, dtype=torch.long)})()})()

    network = Same(tiny("rohqd").config)
    np.testing.assert_array_equal(as_picture(coded(network, as_batch(picture, network))[0]), picture)
    plain = NAFNet(NAFNetConfig(width=4, encoder_depths=(1,), decoder_depths=(1,), middle_depth=1)).eval()
    with torch.inference_mode():
        expected = plain(as_batch(picture, plain))
        np.testing.assert_array_equal(as_picture(coded(plain, as_batch(picture, plain))[0]), as_picture(expected))


# Losses ----------------------------------------------------------------------------------------------------------


def test_losses_of_pixels_gradients_and_frequencies_are_those_of_numpy() -> None:
    one, other = (torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    difference = (one - other).double().numpy()
    assert pixel_loss(one, other).item() == pytest.approx(np.abs(difference).mean(), rel=1e-5)
    spectrum = np.fft.rfft2(difference, norm="ortho")
    expected = (np.abs(spectrum.real).mean() + np.abs(spectrum.imag).mean()) / 2
    assert fourier_loss(one, other).item() == pytest.approx(expected, rel=1e-4)
    levels = []
    for _ in range(3):
        levels.append(np.abs(np.diff(difference, axis=-1)).mean() + np.abs(np.diff(difference, axis=-2)).mean())
        difference = difference.reshape(2, 3, len(difference[0, 0]) // 2, 2, len(difference[0, 0]) // 2, 2).mean((3, 5))
    assert gradient_loss(one, other).item() == pytest.approx(np.mean(levels), rel=1e-4)


@pytest.mark.parametrize("losses", [hinge_losses, logistic_losses])
def test_adversarial_gradients_do_not_mix(losses: Any) -> None:
    discriminator = PartDiscriminator()
    fake, real = torch.rand(1, 3, 16, 16, requires_grad=True), torch.rand(1, 3, 16, 16)
    persuading, judging = losses(discriminator, fake, real)
    judging.backward()
    assert fake.grad is None
    kept = [p.grad.clone() for p in discriminator.parameters() if p.grad is not None]
    persuading.backward()
    assert fake.grad is not None and fake.grad.abs().sum() > 0
    assert all(torch.equal(a, p.grad) for a, p in zip(kept, discriminator.parameters(), strict=True) if p.grad is not None)
    # One step against its gradient makes the picture look more real to the discriminator.
    better = fake.detach() - 0.05 * fake.grad / fake.grad.norm() * fake.numel() ** 0.5 * 0.1
    assert discriminator(better).mean() > discriminator(fake.detach()).mean()


def test_the_adversarial_weight_makes_gradients_four_fifths_as_long() -> None:
    where = nn.Parameter(torch.tensor([1.0, 2.0]))
    weight = balanced_weight((where * torch.tensor([3.0, 4.0])).sum(), (where * torch.tensor([0.0, 2.0])).sum(), where)
    assert weight.item() == pytest.approx(0.8 * 5 / 2, rel=1e-3) and not weight.requires_grad


def test_discriminators_have_the_published_layers() -> None:
    patches = PatchDiscriminator()
    assert patches(torch.rand(1, 3, 128, 128)).shape == (1, 1, 14, 14)
    expected = 64 * 3 * 16 + 64 + sum(16 * a * b + 2 * b for a, b in ((64, 128), (128, 256), (256, 512))) + 512 * 16 + 1
    assert sum(p.numel() for p in patches.parameters()) == expected
    assert PartDiscriminator()(torch.rand(1, 3, 40, 40)).shape == (1, 1, 10, 10)
    flat = EqualisedConvolution(1, 1, down=True, activated=False)
    nn.init.ones_(flat.weight)
    inner = flat(torch.ones(1, 1, 16, 16))[0, 0, 2:-2, 2:-2]
    torch.testing.assert_close(inner, torch.full_like(inner, 3.0))  # nine taps over the root of nine; the blur keeps the mean


def test_parts_lie_where_the_template_has_them() -> None:
    faces = torch.zeros(1, 3, 512, 512)
    for x, y in ((192.98, 239.95), (318.90, 240.19), (257.19, 371.28)):
        faces[0, :, round(y), round(x)] = 1
    parts = parts_of(faces)
    assert {name: part.shape[-1] for name, part in parts.items()} == {"left_eye": 80, "right_eye": 80, "mouth": 120}
    for part in parts.values():
        row, column = np.unravel_index(int(part[0, 0].argmax()), part.shape[-2:])
        assert part.max() == 1 and abs(row - part.shape[-2] / 2) <= 1 and abs(column - part.shape[-1] / 2) <= 1


@pytest.mark.parametrize(("loss", "name"), [(perceptual_loss, "vgg16"), (identity_loss, "arcface-resnet18")])
def test_losses_without_their_weights_say_which(loss: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "empty"))
    monkeypatch.delenv("RESTORE_OFFLINE", raising=False)
    with pytest.raises(WeightsError) as caught:
        loss(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64))
    assert f"restore models pull {name}" in str(caught.value) + (caught.value.hint or "")


# Dictionary ------------------------------------------------------------------------------------------------------


def test_unused_entries_begin_anew_at_vectors_of_the_batch_and_used_ones_stay() -> None:
    network = tiny("rohqd")
    learner = FaceLearner(network, LossPart(restart=1.0), steps=10)
    learner.usage.fill_(5.0)
    learner.usage[[2, 7]] = 0.0
    before = network.quantiser.embedding.weight.detach().clone()
    vectors = torch.randn(1, 8, 8, 4)
    learner._restart(network, vectors)
    after, kept = network.quantiser.embedding.weight.detach(), [i for i in range(16) if i not in (2, 7)]
    torch.testing.assert_close(after[kept], before[kept])
    for index in (2, 7):
        assert (vectors.view(-1, 4) == after[index]).all(1).any()
        assert learner.usage[index] == pytest.approx(64 / 16)


def test_a_dictionary_is_taken_up_after_the_free_part_and_ends_its_restarts() -> None:
    network = tiny("rohqd")
    learner = FaceLearner(network, LossPart(free=0.25, restart=0.5), steps=8)
    pairs = torch.rand(2, 6, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    tables = []
    for _ in range(6):
        learner(pairs).backward()
        tables.append(network.quantiser.embedding.weight.detach().clone())
        learner.usage.zero_()
    assert torch.equal(tables[0], tables[1]) and not torch.equal(tables[1], tables[2])  # steps 0 and 1 are free
    assert not torch.equal(tables[2], tables[3]) and torch.equal(tables[3], tables[4])  # restarts end at step 4


def test_the_restorer_is_drawn_to_the_entries_of_the_sharp_face_and_its_dictionary_stays() -> None:
    guide, network = tiny("rohqd"), tiny("restoreformer++")
    network.quantiser.load_state_dict(guide.quantiser.state_dict())
    learner = FaceLearner(network, LossPart(l1=0, codebook=0, association=1.0), steps=4, guide=guide)
    pairs = torch.rand(2, 6, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    loss = learner(pairs)
    with torch.no_grad():
        codes = guide.quantiser.nearest(guide.encode(pairs[:, 3:] * 2 - 1).latent)
        wanted = guide.quantiser.embedding.weight[codes]
    latent = network.encode(pairs[:, :3] * 2 - 1).latent
    assert loss.item() == pytest.approx(float((latent - wanted).detach().square().mean()), rel=1e-4)
    loss.backward()
    assert network.quantiser.embedding.weight.grad is None and network.encoder.conv_in.weight.grad is not None
    assert all(parameter.grad is None for parameter in guide.parameters())
    assert not any("guide" in name for name in learner.state_dict())


def test_a_few_steps_lower_the_loss() -> None:
    learner = FaceLearner(tiny("restoreformer++"), LossPart(fourier=0.05, adversarial=0.5, parts=1.0, begin=0.5), steps=24)
    optimizer = torch.optim.AdamW(learner.network.parameters(), lr=3e-3)
    rows = [FacePairs([face(n) for n in range(4)], base(SIZE))(np.random.default_rng(n))[0] for n in range(2)]
    pairs, losses = torch.from_numpy(np.stack(rows)), []
    for _ in range(12):
        losses.append(learner(pairs))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1].item() < 0.8 * losses[0].item()
    assert torch.isfinite(learner(pairs))  # with the discriminators


# The whole -------------------------------------------------------------------------------------------------------


def test_train_both_stages_by_the_command_and_load_what_they_leave(tmp_path: Path, folder: Path) -> None:
    arguments = ["train", str(written(tmp_path, recipe())), "--data", str(folder), "-o", str(tmp_path / "d"), "-q"]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    dictionary = tmp_path / "d" / "tiny.safetensors"
    assert load_model(dictionary).card.title == "ROHQD"
    second = recipe(
        name="restorer",
        network={"family": "restoreformer", "options": {"variant": "restoreformer++", **TINY}},
        start_from={"model": "face-dictionary-that-is-not-there"},
        data={"size": SIZE, "crop": 16, "degradation": "face-extending", "validation": 2},
        losses={"l1": 1.0, "association": 1.0},
    )
    arguments = ["train", str(written(tmp_path, second)), "--data", str(folder), "-o", str(tmp_path / "r"), "-q"]
    assert isinstance(CliRunner().invoke(app, arguments).exception, RequestError)
    run = CliRunner().invoke(app, [*arguments, "--start-from", str(dictionary)])
    assert run.exit_code == 0, run.output
    network = load_model(tmp_path / "r" / "restorer.safetensors")
    assert isinstance(network, RestoreFormer) and network.config.kind.asks and network.config.groups == 4
    assert (tmp_path / "r" / "restorer.safetensors").stat().st_size < 2.6 * sum(p.numel() for p in network.parameters()) + 40_000
    first = load_model(dictionary)
    assert isinstance(first, RestoreFormer)
    torch.testing.assert_close(network.quantiser.embedding.weight, first.quantiser.embedding.weight)
    record = (tmp_path / "r" / "restorer.json").read_text()
    facts = yaml.safe_load(record)
    assert facts["started_from"]["file"] == "tiny.safetensors" and str(tmp_path) not in record
    assert facts["trained_on"]["faces"] == 6 and facts["validated_on"] == ["2.png", "6.png"]
    assert {"psnr", "psnr_input"} <= facts["result"].keys()


def test_another_family_is_trained_by_the_same_kind_of_recipe_and_knows_its_faces(tmp_path: Path, folder: Path) -> None:
    options = {"width": 4, "encoder_depths": [1], "middle_depth": 1, "decoder_depths": [1], "face_size": SIZE}
    plain = recipe(
        network={"family": "nafnet", "options": options},
        data={"size": SIZE, "crop": 16, "degradation": "face-extending", "validation": 2},
        losses={"l1": 1.0, "fourier": 0.05},
    )
    average, facts = run_faces(FaceRecipe.model_validate(plain), folder, tmp_path / "run")
    weights, *_ = write_result(average, facts, tmp_path / "run", "rival")
    network = load_model(weights)
    assert network.card.face_size == SIZE and network.card.tasks == ("face restoration",)
    for one, other in zip(average.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)  # as float16 holds them


def test_a_stopped_training_comes_to_the_same_numbers(tmp_path: Path, folder: Path) -> None:
    plain = recipe()
    whole, _ = run_faces(FaceRecipe.model_validate(plain), folder, tmp_path / "whole")

    class StoppedError(Exception):
        pass

    def stop(done: int, *_: Any) -> None:
        if done >= 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        run_faces(FaceRecipe.model_validate(plain), folder, tmp_path / "parts", on_progress=stop)
    parts, _ = run_faces(FaceRecipe.model_validate(plain), folder, tmp_path / "parts")
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["face-compact-dictionary", "face-compact", "face-compact-restoreformer"])
def test_shipped_recipes_stay_below_three_million_parameters(name: str) -> None:
    from restore.models import family

    shipped = load_face_recipe(name)
    assert shipped is not None and shipped.data.size == 256
    network = family(shipped.network.family).create(**shipped.network.options)
    assert 2_000_000 < sum(p.numel() for p in network.parameters()) < 3_000_000
    assert network.card.face_size == 256
    restores = name != "face-compact-dictionary"
    assert network.card.tasks == (("face restoration",) if restores else ("coding of sharp faces",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": {"association": 1.0}}, "needs the dictionary of start_from"),
        ({"losses": {"parts": 1.0}, "data": {"size": 32, "crop": 16}}, "needs whole faces"),
        ({"losses": {"beauty": 1.0}}, "losses.beauty"),
        ({"data": {"size": 32, "crop": 64}}, "larger than data.size"),
    ],
)
def test_recipes_that_cannot_be_meant_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        load_face_recipe(written(tmp_path, recipe(**changes)))


def test_a_size_that_the_network_cannot_take_is_refused(tmp_path: Path, folder: Path) -> None:
    odd = recipe(data={"size": 32, "crop": 18, "degradation": "face-sharp", "validation": 2})
    with pytest.raises(RequestError, match="multiples of 4"):
        run_faces(FaceRecipe.model_validate(odd), folder, tmp_path / "run")


def test_recipes_of_other_tasks_are_left_to_their_own_reader(tmp_path: Path) -> None:
    assert load_face_recipe("hat-compact-x4") is None and load_face_recipe("no-such-recipe") is None
