"""What a training begins with: whole networks, encoders of every published form, and some of the cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from hybrid.errors import RequestError, WeightsError
from hybrid.records import sha256_file
from hybrid.weights.containers import write_checkpoint
from medical.cli.app import app
from medical.loading import save_model
from medical.models import family
from medical.models.base import SegmentationNetwork
from medical.models.encoders import encoder_files
from medical.training.cases import drawn
from medical.training.run import Recipe, run
from medical.training.starting import begin
from tests.medical.training_stubs import RECIPE, changed, eggs, written

__all__ = ["eggs"]  # a fixture

SWIN = {"feature_size": 4, "depths": (1, 1), "num_heads": (1, 2), "window": 2}
CSWIN = {"embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2), "split_size": (1, 2), "patch": (4, 4), "in_channels": 1}


def swin(seed: int = 0, **options: Any) -> SegmentationNetwork:
    torch.manual_seed(seed)
    return family("swin_unetr").create(**SWIN | options)


def cswin(seed: int = 0, **options: Any) -> SegmentationNetwork:
    torch.manual_seed(seed)
    return family("cswin_unet").create(**CSWIN | options)


def copied(network: SegmentationNetwork) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def encoder(network: SegmentationNetwork) -> dict[str, torch.Tensor]:
    """Under the names of files of the encoder alone that this package writes."""
    files = encoder_files(network.card.family)
    assert files is not None
    return {files.to_published(name): tensor for name, tensor in network.get_submodule("encoder").state_dict().items()}


def official(network: SegmentationNetwork) -> dict[str, Any]:
    """As `model_swinvit.pt` has it: other names, a norm and heads of pretext tasks, and indices that networks compute."""
    own = {"module." + k.removeprefix("swinViT.").replace("mlp.linear", "mlp.fc"): v for k, v in encoder(network).items()}
    index = {"module.layers1.0.blocks.0.attn.relative_position_index": torch.zeros(8, 8, dtype=torch.int64)}
    others = {"module.norm.weight": torch.ones(16), "module.rotation_head.weight": torch.ones(4, 16)}
    return {"epoch": 7, "state_dict": own | index | others}


@pytest.mark.parametrize("form", ["ours", "official"])
def test_of_an_encoder_all_is_taken_and_the_decoder_stays(form: str, tmp_path: Path) -> None:
    given, network = swin(1), swin(2, out_channels=3)
    path = tmp_path / ("model_swinvit.pt" if form == "official" else "encoder.safetensors")
    if form == "official":
        torch.save(official(given), path)
    else:
        write_checkpoint(path, encoder(given), {"options": json.dumps(given.options())})
    before = copied(network)
    facts = begin(network, str(path))["started_from"]
    count = len(encoder(given))
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, given.state_dict()[name] if name.startswith("encoder.") else before[name]), name
    assert facts["file"] == path.name and facts["sha256"] == sha256_file(path)
    left = len(before) - count
    told = f"{count} of {len(before)} tensors taken: the whole encoder; {left} initialised, since the file holds an encoder alone"
    assert facts["tensors"].startswith(told)
    unused = "; 2 of the file not used, since the network has nothing of the kind (norm.weight, rotation_head.weight)"
    assert facts["tensors"].endswith(unused) is (form == "official")


def test_the_recorded_official_encoder(shared: Path, tmp_path: Path) -> None:
    """Names and shapes of `model_swinvit.pt` at 24 features, in the full network."""
    from tests.restore.parity import fill, load_case

    state = fill(load_case(shared / "parity" / "swin_unetr" / "encoder_f24_ssl_checkpoint_keys"))
    torch.save({"state_dict": state}, tmp_path / "model_swinvit.pt")
    network = family("swin_unetr").create(feature_size=24, out_channels=3)
    told = begin(network, str(tmp_path / "model_swinvit.pt"))["started_from"]["tensors"]
    assert told.startswith("118 of 151 tensors taken: the whole encoder; 33 initialised") and "not used" not in told
    given = state["module.layers2.0.blocks.1.mlp.fc2.weight"]
    assert torch.equal(network.state_dict()["encoder.stages.2.blocks.1.mlp.fc2.weight"], given)


def test_of_a_backbone_for_slices_the_decoder_begins_as_the_encoder(tmp_path: Path) -> None:
    given, network = cswin(1), cswin(2, out_channels=3)
    path = tmp_path / "cswin.pth"
    heads = {"head.weight": torch.ones(10, 16), "head.bias": torch.ones(10)}
    torch.save({"state_dict_ema": encoder(given) | heads}, path)
    told = begin(network, str(path))["started_from"]["tensors"]
    now, theirs = network.state_dict(), given.get_submodule("encoder").state_dict()
    stages = [name for name in theirs if name.startswith("stages.")]
    assert all(torch.equal(now["encoder." + name], tensor) for name, tensor in theirs.items())
    assert all(torch.equal(now[name], theirs[name]) for name in stages)
    assert told.startswith(f"{len(theirs)} of {len(now)} tensors taken: the whole encoder; ")
    assert "begin as the encoder's" in told and told.endswith("nothing of the kind (head.weight, head.bias)")


def test_part_of_an_encoder_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    network = swin(2)
    before = copied(network)
    lost = encoder(swin(1))
    del lost["swinViT.layers2.0.downsample.norm.bias"]
    for name, state in {
        "a": lost,
        "b": encoder(swin(1, feature_size=8)),  # of other widths: published code would take nothing of it, and say nothing
        "c": {"conv.weight": torch.ones(3)},
    }.items():
        torch.save(state, tmp_path / name)
        with pytest.raises(WeightsError, match=r"missing|another shape|holds no encoder"):
            begin(network, str(tmp_path / name))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("form", ["encoder", "network"])
def test_another_merging_order_is_refused(form: str, tmp_path: Path) -> None:
    """It fits by every name and shape, and would be wrong."""
    given, path = swin(1, merging="v2"), tmp_path / "x.safetensors"
    if form == "network":
        save_model(path, given)
    else:
        write_checkpoint(path, encoder(given), {"options": json.dumps(given.options())})
    network = swin(2, merging="legacy")
    before = copied(network)
    with pytest.raises(RequestError, match=r"merging order v2, and the network has legacy.*merging='v2'"):
        begin(network, str(path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert begin(swin(2, merging="v2"), str(path))


def test_of_a_whole_network_what_fits_is_taken(tmp_path: Path) -> None:
    given, network = swin(1, out_channels=2), swin(2, out_channels=3)
    save_model(tmp_path / "x.safetensors", given)
    told = begin(network, str(tmp_path / "x.safetensors"))["started_from"]["tensors"]
    count = len(network.state_dict())
    assert told.startswith(f"{count - 2} of {count} tensors taken; 2 initialised (head.weight, head.bias)")
    assert told.endswith("2 of them have another shape in the file")
    assert torch.equal(network.state_dict()["decoder.1.up.weight"], given.state_dict()["decoder.1.up.weight"])


# Some of the cases -----------------------------------------------------------------------------------------------


def test_cases_are_chosen_by_the_seed() -> None:
    names = [f"case_{n:03}" for n in range(180)]
    assert drawn(names, None, 0) == tuple(names) == drawn(names, 1.0, 0)
    tenth = drawn(names, 0.1, 0)
    assert len(tenth) == 18 and list(tenth) == sorted(tenth) and tenth == drawn(names, 18, 0) != drawn(names, 18, 1)
    assert set(drawn(names, 5, 0)) < set(tenth) < set(drawn(names, 0.5, 0))
    assert len(drawn(names, 1, 0)) == len(drawn(names, 0.001, 0)) == 1
    often = np.bincount([int(name[-3:]) for seed in range(600) for name in drawn(names, 18, seed)], minlength=180)
    assert often.min() > 30 and often.max() < 100  # 60 each
    with pytest.raises(RequestError, match=r"There are 180 cases to train on, not 181.*data\.cases"):
        drawn(names, 181, 0)


def test_shares_and_numbers_of_cases_in_recipes() -> None:
    def cases(value: Any) -> Any:
        return Recipe.model_validate(changed({"data": {"cases": value}})).data.cases

    assert isinstance(cases(1), int) and isinstance(cases(1.0), float) and cases(0.1) == 0.1 and cases(18) == 18
    for wrong in (0, -1, 1.5, 0.0, "some"):
        with pytest.raises(ValueError, match="cases"):
            cases(wrong)


def test_a_training_on_some_of_the_cases_from_an_encoder(eggs: Path, tmp_path: Path) -> None:
    options = {**RECIPE["network"]["options"], "out_channels": 3}
    given = family("swin_unetr").create(**options)
    path = tmp_path / "encoder.safetensors"
    write_checkpoint(path, encoder(given), {"options": json.dumps(given.options())})
    told: list[str] = []
    still = RECIPE["training"] | {"steps": 1, "learning_rate": 1e-9}
    chosen = Recipe.model_validate(changed({"start_from": str(path), "training": still, "data": {"cases": 0.5}}))
    network, facts = run(chosen, eggs, tmp_path / "run", accelerator="cpu", on_start=told.append)
    for name, tensor in given.get_submodule("encoder").state_dict().items():
        torch.testing.assert_close(network.get_submodule("encoder").state_dict()[name], tensor, atol=1e-6, rtol=0)
    assert facts["trained_on"] == list(drawn([f"egg_{n}" for n in range(4)], 2, 0)) and facts["recipe"]["data"]["cases"] == 0.5
    assert told[0] == "2 of 4 cases to train on, 2 to choose by"
    assert told[1] == f"starts from encoder.safetensors: {facts['started_from']['tensors']}"


def test_the_command_takes_an_encoder_and_a_share_of_the_cases(eggs: Path, tmp_path: Path) -> None:
    given = family("swin_unetr").create(**RECIPE["network"]["options"])
    path = tmp_path / "encoder.safetensors"
    write_checkpoint(path, encoder(given), {"options": json.dumps(given.options())})
    line = ["train", str(written(tmp_path, {})), "--data", str(eggs), "-o", str(tmp_path / "out"), "--steps", "1"]
    line += ["--accelerator", "cpu", "--start-from", str(path)]
    result = CliRunner().invoke(app, [*line, "--cases", "1"])
    assert result.exit_code == 0, result.output
    assert f"starts from encoder.safetensors: {len(encoder(given))} of" in result.stderr
    record = json.loads((tmp_path / "out" / "egg.json").read_text())
    assert len(record["trained_on"]) == 1 and record["recipe"]["data"]["cases"] == 1
    assert record["started_from"]["sha256"] == sha256_file(path)
    for wrong in ("0", "1.5", "all", "-3"):
        result = CliRunner().invoke(app, [*line, f"--cases={wrong}"])
        assert result.exit_code == 2 and "neither a share from 0 to 1" in result.stderr
