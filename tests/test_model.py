"""The generator: its table of layers, its widths, folding, and the seeded stand-in that the other tests use."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lipsync.model.folding import fold
from lipsync.model.seeded import seeded_generator
from lipsync.model.wav2lip import REFERENCE, Wav2Lip, Widths, read_widths

NARROW = Widths(face=(4, 4, 8, 8, 12, 16, 16), voice=(4, 6, 8, 12, 20), decoder=(16, 12, 16, 12, 8, 8, 4), output=5)


@pytest.fixture(scope="module")
def narrow() -> Wav2Lip:
    return seeded_generator(7, widths=NARROW)


def inputs(count: int, *, seed: int = 3) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    mel = torch.rand(count, 1, 80, 16, generator=source) * 8 - 4
    faces = torch.rand(count, 6, 96, 96, generator=source)
    faces[:, :3, 48:] = 0
    return mel, faces


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_the_published_networks_counts_come_out() -> None:
    with torch.device("meta"):
        model = Wav2Lip()
    assert len(model.state_dict()) == 352
    assert len(list(model.blocks())) == 50
    assert sum(p.numel() for p in model.parameters()) == 36_298_035
    assert sum(b.numel() for b in model.buffers()) == 22_802
    parts = (model.face_encoder_blocks, model.audio_encoder, model.face_decoder_blocks, model.output_block)
    assert [sum(p.numel() for p in part.parameters()) for part in parts] == [8_171_056, 2_812_672, 25_291_072, 23_235]


def test_names_and_shapes_are_those_of_published_checkpoints() -> None:
    with torch.device("meta"):
        shapes = shapes_of(Wav2Lip())
    assert shapes["face_encoder_blocks.0.0.conv_block.0.weight"] == (16, 6, 7, 7)
    assert shapes["face_encoder_blocks.2.3.conv_block.1.running_var"] == (64,)
    assert shapes["audio_encoder.9.conv_block.0.weight"] == (256, 128, 3, 3)
    assert shapes["face_decoder_blocks.3.0.conv_block.0.weight"] == (768, 384, 3, 3)  # transposed: inputs first
    assert shapes["face_decoder_blocks.6.2.conv_block.1.num_batches_tracked"] == ()
    assert shapes["output_block.0.conv_block.0.weight"] == (32, 80, 3, 3)
    assert shapes["output_block.1.weight"] == (3, 32, 1, 1) and shapes["output_block.1.bias"] == (3,)


def test_multiplications_per_frame_are_the_published_networks() -> None:
    with torch.device("meta"):
        model = Wav2Lip().eval()
        macs = 0

        def count(module: nn.Module, given: tuple[Tensor], made: Tensor) -> None:
            nonlocal macs
            assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
            at = given[0] if isinstance(module, nn.ConvTranspose2d) else made
            macs += at.shape[2] * at.shape[3] * module.weight.numel()

        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.register_forward_hook(count)
        model(torch.empty(1, 1, 80, 16), torch.empty(1, 6, 96, 96))
    assert round(macs / 1e9, 3) == 3.967


def test_strides_and_skips_have_the_sizes_of_the_table() -> None:
    with torch.device("meta"):
        model = Wav2Lip().eval()
        skips = model.encode_faces(torch.empty(2, 6, 96, 96))
        voice = model.audio_encoder(torch.empty(2, 1, 80, 16))
        drawn = model.draw(voice, skips)
    expected = [(16, 96), (32, 48), (64, 24), (128, 12), (256, 6), (512, 3), (512, 1)]
    assert [tuple(skip.shape[1:3]) for skip in skips] == expected
    assert tuple(voice.shape) == (2, 512, 1, 1)
    assert tuple(drawn.shape) == (2, 3, 96, 96)


@pytest.mark.parametrize("widths", [REFERENCE, NARROW], ids=["published", "narrow"])
def test_widths_are_read_off_shapes(widths: Widths) -> None:
    with torch.device("meta"):
        model = Wav2Lip(widths)
    assert read_widths(shapes_of(model)) == widths


def test_widths_of_wrong_length_or_sign_are_refused() -> None:
    with pytest.raises(ValueError, match="7 face, 5 voice"):
        Widths(face=(16, 32))
    with pytest.raises(ValueError, match="at least one channel"):
        Widths(output=0)


def test_shortcut_is_added_before_the_relu(narrow: Wav2Lip) -> None:
    block = narrow.face_encoder_blocks[1][1]
    assert block.residual
    x = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(1))
    kept = x.clone()
    with torch.inference_mode():
        expected = torch.relu(block.conv_block(x) + x)
        assert torch.equal(block(x), expected)
    assert torch.equal(x, kept), "a block must not write into its input: the skips are used again"


@pytest.mark.parametrize("widths", [NARROW, REFERENCE], ids=["narrow", "published"])
def test_seeded_generator_is_alive(widths: Widths) -> None:
    model = seeded_generator(11, widths=widths)
    mel, faces = inputs(3)
    with torch.inference_mode():
        drawn = model(mel, faces[:1].expand(3, -1, -1, -1)) * 255
        flat = model(mel[:1], torch.full_like(faces[:1], 0.5)) * 255
    assert drawn.min() >= 0 and drawn.max() <= 255
    assert drawn[0].std() >= 40 and flat.std() >= 40
    assert (drawn[0] - drawn[1]).abs().mean() >= 5, "another mel must change the picture"
    assert (drawn[0] - flat[0]).abs().mean() >= 5, "another face must change the picture"
    assert ((drawn < 1) | (drawn > 254)).float().mean() <= 0.25, "a saturated output would hide differences"


def test_seeded_generator_repeats_itself_and_leaves_the_global_seed_alone(narrow: Wav2Lip) -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    again, other = seeded_generator(7, widths=NARROW), seeded_generator(8, widths=NARROW)
    assert torch.equal(torch.rand(4), expected)
    for name, tensor in narrow.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert not torch.equal(narrow.output_block[1].weight, other.output_block[1].weight)


def test_plainly_random_weights_would_prove_nothing() -> None:
    torch.manual_seed(0)
    mel, faces = inputs(2)
    with torch.inference_mode():
        drawn = Wav2Lip(NARROW).eval()(mel, faces[:1].expand(2, -1, -1, -1)) * 255
    assert (drawn[0] - drawn[1]).abs().mean() < 1, "if this fails, the calibration in seeded.py may be dropped"


def test_folding_keeps_the_function_and_the_original(narrow: Wav2Lip) -> None:
    before = {name: tensor.clone() for name, tensor in narrow.state_dict().items()}
    folded = fold(narrow)
    mel, faces = inputs(2)
    with torch.inference_mode():
        assert (folded.double()(mel.double(), faces.double()) - narrow(mel, faces)).abs().max() * 255 < 0.1
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert len(list(folded.blocks())) == 50
    assert sum(isinstance(m, nn.ConvTranspose2d) for m in folded.modules()) == 6
    for name, tensor in narrow.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_folding_changes_few_values_of_the_published_widths_by_at_most_one() -> None:
    model = seeded_generator(1)
    mel, faces = inputs(2)
    with torch.inference_mode():
        plain = (model(mel, faces) * 255).to(torch.uint8).int()
        folded = (fold(model)(mel, faces) * 255).to(torch.uint8).int()
    assert plain.float().std() >= 40
    assert (plain - folded).abs().max() <= 1
    assert (plain != folded).float().mean() <= 0.003
