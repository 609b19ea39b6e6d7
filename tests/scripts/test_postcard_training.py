"""What the trainings of the bundled model rely on."""

import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import flex_attention

from scripts.postcard.distill import Distillation, Fleet
from scripts.postcard.distributed import Group, join
from scripts.postcard.muon import StackedMuon
from scripts.postcard.streams import StreamAttention
from scripts.postcard.train_autoencoder import Trained, is_kernel
from scripts.postcard.train_denoiser import TeacherForcing, flow_loss, make_generator, splice
from scripts.postcard.training import KernelMatrices, postcard_config


@pytest.fixture
def small():
    """The bundled model's config with a tiny transformer and 32x32 pixels."""
    config = postcard_config()
    return config.model_copy(
        update={
            "denoiser": config.denoiser.model_copy(
                update={"dim": 48, "layers": 1, "heads": 1, "head_dim": 48, "ffn_dim": 48}
            ),
            "resolution": config.resolution.model_copy(update={"default": (32, 32)}),
        }
    )  # fmt: skip


def item(config, clips, frames):
    channels = config.autoencoder.latent_channels
    words = torch.ones(clips, config.text_encoder.max_tokens, dtype=torch.int64)
    return {
        "latents": torch.randn(clips, channels, frames, 4, 4),
        "ids": words,
        "mask": words,
        "weight": torch.rand(clips, frames, 4, 4),
    }


def test_a_step_on_a_matrix_steps_the_kernel():
    conv = nn.Conv3d(4, 6, 3)
    conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last_3d)
    kernels = KernelMatrices([conv.weight])
    before = conv.weight.detach().clone()
    conv(torch.randn(1, 4, 3, 3, 3)).square().sum().backward()
    kernels.load_gradients()
    StackedMuon(kernels.matrices, rate=0.1, weight_decay=0.0).step()
    after = conv.weight.detach()
    assert (after != before).float().mean() > 0.9
    assert torch.equal(after.movedim(1, -1).flatten(1), kernels.matrices[0].detach())


def test_stacked_muon_steps_as_torch_does():
    torch.manual_seed(0)
    shapes = [(24, 24), (16, 48), (24, 24), (48, 16)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(value.detach().clone()) for value in ours]
    stacked = StackedMuon(ours, rate=0.02, weight_decay=0.01)
    reference = torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for own, other in zip(ours, theirs, strict=True):
            own.grad = torch.randn(own.shape)
            other.grad = own.grad.clone()
        stacked.step()
        reference.step()
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, atol=2e-3, rtol=0)  # bfloat16 steps of about 0.02


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("chunk_tokens", "window"), [(64, 3), (12, 4)])
def test_teacher_forcing_sees_the_window_of_clean_chunks_and_its_own(chunk_tokens, window):
    torch.manual_seed(0)
    chunks = 5
    query, key, value = torch.randn(3, 2, 1, 2 * chunks * chunk_tokens, 16)
    attend = TeacherForcing(chunks, chunk_tokens, window, torch.device("cpu"))
    attended = attend(0, query, key, value)
    sparse = flex_attention(query, key, value, block_mask=attend.blocks)
    torch.testing.assert_close(sparse, attended)
    pieces = [x.unflatten(2, (2 * chunks, chunk_tokens)) for x in (query, key, value)]
    for place in range(2 * chunks):
        seen = [*range(max(0, place % chunks - window + 1), place % chunks), place]
        keys, values = (x[:, :, seen].flatten(2, 3) for x in pieces[1:])
        expected = nn.functional.scaled_dot_product_attention(pieces[0][:, :, place], keys, values)
        torch.testing.assert_close(attended.unflatten(2, (2 * chunks, chunk_tokens))[:, :, place], expected)


def test_a_kernel_that_does_not_lie_channels_last_is_refused():
    with pytest.raises(ValueError, match="channels last"):
        KernelMatrices([nn.Conv3d(4, 6, 3).weight])


def test_a_frozen_encoder_stays_as_it_is():
    group = Group(0, 1, torch.device("cpu"))
    torch.manual_seed(0)
    trained = Trained(None, group, freeze_encoder=True, compiling=False)
    before = {name: value.detach().clone() for name, value in trained.model.named_parameters()}
    latents = torch.randn(1, trained.model.config.latent_channels, 1, 4, 4)
    trained.step(trained.eager.decode(latents)[0].square().mean(), group, 0)
    changed = {name for name, value in trained.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("streaming_decoder.") for name in changed)


def test_only_inner_kernels_go_to_muon():
    model = Trained(None, Group(0, 1, torch.device("cpu")), freeze_encoder=False, compiling=False).model
    chosen = {name for name, value in model.named_parameters() if is_kernel(name, value)}
    assert "streaming_decoder.decoder.middle.0.residual.2.weight" in chosen
    assert not chosen & {"streaming_decoder.decoder.head.2.weight", "encoder.conv1.weight", "conv1.weight"}
    assert not any("gamma" in name for name in chosen)


def test_spliced_clips_begin_with_chunks_that_weigh_nothing():
    torch.manual_seed(1)
    clean = torch.arange(64.0)[:, None, None, None, None].expand(64, 2, 12, 1, 1).clone()
    mixed, weight = splice(clean, torch.ones(64, 1, 12, 1, 1), chunk=3)
    foreign = mixed[:, 0, :, 0, 0] != clean[:, 0, :, 0, 0]
    assert torch.equal(foreign, weight[:, 0, :, 0, 0] == 0)
    lengths = foreign.sum(1)
    assert set(lengths.tolist()) <= {0, 3, 6, 9} and 0 < (lengths > 0).sum() < 40
    assert all(foreign[row, : lengths[row]].all() for row in range(64))


@pytest.mark.parametrize("resample", [False, True])
def test_the_flow_loss_teaches_every_parameter(small, resample):
    torch.manual_seed(0)
    model = make_generator(small, torch.device("cpu"), frames=24)
    flow_loss(model, item(small, 4, 6), small, resample=resample).backward()
    silent = [name for name, value in model.named_parameters() if value.grad is None]
    assert not silent


def test_a_student_that_equals_its_teacher_in_one_step_has_nothing_to_learn(small):
    """With one step each, no guidance and equal weights, the target is the student's own estimate."""
    schedule = small.schedule.model_copy(update={"timesteps": (1000.0,)})
    small = small.model_copy(update={"schedule": schedule})
    torch.manual_seed(0)
    model = make_generator(small, torch.device("cpu"))
    nn.init.normal_(model.denoiser.head.head.weight, std=0.1)
    arguments = SimpleNamespace(teacher_steps=1, guidance=1.0, streams=2, seed=0, fleets=1)
    work = Distillation(small, model, arguments, join())
    work.rng = random.Random(3)  # its first draws do not switch prompts
    assert [float(work.loss(turn)) for turn in range(3)] == pytest.approx([0.0] * 3, abs=1e-9)


def test_a_switched_fleet_is_encoded_again_with_its_own_latents(small):
    torch.manual_seed(0)
    model = make_generator(small, torch.device("cpu"))
    arguments = SimpleNamespace(teacher_steps=1, guidance=1.5, streams=2, seed=0, fleets=1)
    work = Distillation(small, model, arguments, join())
    fleet: Fleet = work.fleets[0]
    with torch.no_grad():
        for turn in range(2):
            work.loss(turn)
        context, past, latents = fleet.context, fleet.student, list(fleet.made)
        work._switch(fleet)
    assert not torch.equal(fleet.context, context)
    assert isinstance(fleet.student, StreamAttention) and fleet.student is not past
    assert len(fleet.student.past) == len(fleet.teacher.past) == 2
    assert all(torch.equal(a, b) for a, b in zip(fleet.made, latents, strict=True))
