"""Stage 1: only the new rows train, and all else keeps its bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from twostage.families import Base, load_base
from twostage.method.embedding import EmbeddingLearner, placed_rows, write_rows
from twostage.method.examples import Examples, encode_photos
from twostage.method.loop import StageLoop
from twostage.recipe import Data, Stage1, Token
from twostage.subject.photos import find_photos
from twostage.subject.tokens import Placeholder, add_placeholder, mean_norm


def stage1(base: Base, photos: Path, token: Token) -> tuple[EmbeddingLearner, Placeholder, Examples]:
    placeholder = add_placeholder(base.tokenizer, base.text_encoder, token)
    examples = encode_photos(base, find_photos(photos), Data(), "<rare> backpack", 0, torch.device("cpu"))
    return EmbeddingLearner(base, placeholder), placeholder, examples


def bits(base: Base) -> dict[str, torch.Tensor]:
    nets = {"text_encoder": base.text_encoder, "vae": base.vae, "unet": base.denoiser}
    return {f"{n}.{k}": v.clone() for n, net in nets.items() for k, v in net.state_dict().items()}


@pytest.mark.parametrize("num_vectors", [1, 3])
def test_training_changes_the_new_rows_and_nothing_else(tiny_base: Path, photos: Path, num_vectors: int) -> None:
    base = load_base(str(tiny_base))
    learner, placeholder, examples = stage1(base, photos, Token(num_vectors=num_vectors))
    before, start = bits(base), learner.rows.detach().clone()

    options = Stage1(steps=3, learning_rate=1e-2, batch_size=2)
    list(StageLoop(1, learner, examples, options, Accelerator(), learner.pull_norm).steps())
    write_rows(base.text_encoder, placeholder.token_ids, learner.rows)

    assert (learner.rows != start).any(dim=1).all()
    after = bits(base)
    table = next(name for name in after if name.endswith("token_embedding.weight"))
    assert torch.equal(after[table][placeholder.token_ids], learner.rows)
    after[table][placeholder.token_ids] = before[table][placeholder.token_ids]
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_gradient_and_optimizer_state_exist_for_the_new_rows_only(tiny_base: Path, photos: Path) -> None:
    base = load_base(str(tiny_base))
    learner, _, examples = stage1(base, photos, Token(num_vectors=2))
    options = Stage1(steps=1, learning_rate=1e-2, batch_size=2)
    loop = StageLoop(1, learner, examples, options, Accelerator())
    list(loop.steps())

    width = base.text_encoder.config.hidden_size
    state = loop.progress().optimizer
    assert {tuple(t.shape) for t in state.values()} == {(), (2, width)}
    frozen = [*base.text_encoder.parameters(), *base.denoiser.parameters()]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)


def test_the_placed_rows_give_what_a_table_holding_them_gives(tiny_base: Path) -> None:
    """And the gradient is the table's own in those rows."""
    base = load_base(str(tiny_base))
    placeholder = add_placeholder(base.tokenizer, base.text_encoder, Token(num_vectors=2))
    rows = torch.nn.Parameter(torch.randn(2, base.text_encoder.config.hidden_size))
    prompts = [placeholder.expand("a <rare> backpack on the <rare> beach"), "a photo"]
    with placed_rows(base.text_encoder, placeholder.token_ids, rows):
        placed = base.encode_text(prompts)["states"]
    placed.square().sum().backward()

    write_rows(base.text_encoder, placeholder.token_ids, rows)
    table = base.text_encoder.get_input_embeddings().weight.requires_grad_(True)
    written = base.encode_text(prompts)["states"]
    written.square().sum().backward()

    assert torch.equal(placed, written)
    assert torch.allclose(rows.grad, table.grad[placeholder.token_ids])


def test_the_text_encoder_is_its_old_self_after_placing_rows(tiny_base: Path) -> None:
    encoder = load_base(str(tiny_base)).text_encoder
    with pytest.raises(ZeroDivisionError), placed_rows(encoder, [5], torch.zeros(1, encoder.config.hidden_size)):
        raise ZeroDivisionError
    assert "forward" not in vars(encoder.get_input_embeddings())


def test_prompts_of_a_batch_get_their_own_states(tiny_base: Path, photos: Path) -> None:
    """Equal prompts are encoded once; the samples' losses are those of samples taken one by one."""
    base = load_base(str(tiny_base))
    learner, _, examples = stage1(base, photos, Token())
    whole = examples.batch(1, 0, range(6), 6)
    together = learner(whole)
    alone = torch.cat([learner(examples.batch(1, 0, range(i, i + 1), 6)) for i in range(6)])
    assert torch.allclose(together, alone, rtol=1e-4)


def test_the_norm_is_pulled_to_the_vocabularys_mean(tiny_base: Path, photos: Path) -> None:
    base = load_base(str(tiny_base))
    learner, placeholder, _ = stage1(base, photos, Token(num_vectors=2))
    table = base.text_encoder.get_input_embeddings().weight
    target = mean_norm(table[: placeholder.vocabulary])
    with torch.no_grad():
        learner.rows.copy_(torch.stack([table[3] * 9, table[4] / 9]))
    before = learner.rows.detach().clone()

    learner.pull_norm(0.001)

    expected = before.norm(dim=1) + 0.1 * (target - before.norm(dim=1))
    assert torch.allclose(learner.rows.norm(dim=1), expected)
    directions = torch.nn.functional.cosine_similarity(learner.rows, before)
    assert torch.allclose(directions, torch.ones(2))
    learner.pull_norm(0.5)
    assert torch.allclose(learner.rows.norm(dim=1), torch.full((2,), target))
