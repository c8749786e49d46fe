"""twostage/subject/tokens.py: a new token changes nothing that was there, and stock diffusers reads its file."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from twostage.errors import UserError
from twostage.recipe import Token
from twostage.subject.token_files import embedding_file_name, load_embedding, save_embedding
from twostage.subject.tokens import add_placeholder, check_prompts, mean_norm


def rows_of(text_encoder):
    return text_encoder.get_input_embeddings().weight.detach()


@pytest.mark.parametrize("num_vectors", [1, 3])
def test_existing_rows_keep_their_bits(tokenizer, text_encoder, num_vectors):
    before = {name: value.clone() for name, value in text_encoder.state_dict().items()}
    vocabulary, special = len(tokenizer), (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
    plain = tokenizer("a photo of a red dog").input_ids
    text_encoder.requires_grad_(False)

    placeholder = add_placeholder(tokenizer, text_encoder, Token(num_vectors=num_vectors))

    after = text_encoder.state_dict()
    table = next(name for name in before if name.endswith("token_embedding.weight"))
    assert torch.equal(after.pop(table)[:vocabulary], before.pop(table))
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert after.keys() == before.keys()
    assert placeholder.vocabulary == vocabulary
    assert placeholder.token_ids == list(range(vocabulary, vocabulary + num_vectors))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == special
    assert tokenizer("a photo of a red dog").input_ids == plain
    assert text_encoder.config.vocab_size == vocabulary + num_vectors == len(tokenizer)
    assert not any(p.requires_grad for p in text_encoder.parameters())


@pytest.mark.parametrize("num_vectors", [1, 3])
def test_prompt_reaches_exactly_the_new_rows(tokenizer, text_encoder, num_vectors):
    placeholder = add_placeholder(tokenizer, text_encoder, Token(num_vectors=num_vectors))
    ids = tokenizer(placeholder.expand("a photo of a <rare> backpack")).input_ids
    assert [i for i in ids if i >= placeholder.vocabulary] == placeholder.token_ids


@pytest.mark.parametrize("num_vectors", [1, 3])
@pytest.mark.parametrize("name", ["<rare>", "rare*", "<été>", "rare"])
def test_expand_is_what_stock_diffusers_makes_of_a_prompt(pipeline, num_vectors, name):
    placeholder = add_placeholder(
        pipeline.tokenizer, pipeline.text_encoder, Token(placeholder=name, num_vectors=num_vectors)
    )
    for prompt in (f"a photo of a {name} dog", f"{name}, a dog and {name}", "a dog"):
        assert placeholder.expand(prompt) == pipeline.maybe_convert_prompt(prompt, pipeline.tokenizer)


def test_capitals_are_refused_where_stock_diffusers_would_drop_vectors(tokenizer, text_encoder):
    with pytest.raises(UserError, match="call it <rare>"):
        add_placeholder(tokenizer, text_encoder, Token(placeholder="<Rare>", num_vectors=2))
    (row,) = add_placeholder(tokenizer, text_encoder, Token(placeholder="<Rare>")).token_ids
    assert row in tokenizer("a <Rare> dog").input_ids


def test_starts_from_the_word(tokenizer, text_encoder):
    (word,) = tokenizer("dog", add_special_tokens=False).input_ids
    placeholder = add_placeholder(tokenizer, text_encoder, Token(initializer="dog", num_vectors=2))
    table = rows_of(text_encoder)
    assert torch.equal(table[placeholder.token_ids], table[[word, word]])
    assert not placeholder.notes


def test_starts_from_the_mean_of_several_tokens_and_says_so(tokenizer, text_encoder):
    ids = tokenizer("bear plushie", add_special_tokens=False).input_ids
    assert len(ids) > 1
    placeholder = add_placeholder(tokenizer, text_encoder, Token(initializer="bear plushie"))
    table = rows_of(text_encoder)
    assert torch.allclose(table[placeholder.token_ids[0]], table[ids].mean(0))
    (note,) = placeholder.notes
    assert "bear plushie" in note
    assert "mean" in note


def test_starts_from_the_mean_of_the_vocabulary(tokenizer, text_encoder):
    """Rows beyond the vocabulary, which padded tables have, do not count; and they are used, not added to."""
    text_encoder.resize_token_embeddings(len(tokenizer) + 8)
    rows_of(text_encoder)[len(tokenizer) :] = 100
    mean = rows_of(text_encoder)[: len(tokenizer)].mean(0)
    placeholder = add_placeholder(tokenizer, text_encoder, Token())
    assert torch.allclose(rows_of(text_encoder)[placeholder.token_ids[0]], mean)
    assert rows_of(text_encoder).shape[0] == placeholder.vocabulary + 8


def test_half_precision_stays_half(tokenizer, text_encoder):
    text_encoder.half()
    add_placeholder(tokenizer, text_encoder, Token())
    assert rows_of(text_encoder).dtype == torch.float16
    assert rows_of(text_encoder).isfinite().all()


@pytest.mark.parametrize(
    "name", ["dog", "DOG", "do", "a", "<|endoftext|>", "é", "<", "two words", " ", "a\tb", "a\x00", "{}"]
)
def test_refuses_a_placeholder_that_is_a_word_or_no_name(tokenizer, text_encoder, name):
    size = len(tokenizer)
    with pytest.raises(UserError, match="placeholder") as caught:
        add_placeholder(tokenizer, text_encoder, Token(placeholder=name))
    assert "\n" not in str(caught.value)
    assert len(tokenizer) == size == rows_of(text_encoder).shape[0]


@pytest.mark.parametrize(("first", "second"), [("<a>", "<a>_1"), ("<a>_1", "<a>"), ("<a>", "<a>"), ("<a>", "<A>")])
def test_refuses_a_placeholder_that_diffusers_would_confuse_with_another(tokenizer, text_encoder, first, second):
    add_placeholder(tokenizer, text_encoder, Token(placeholder=first))
    with pytest.raises(UserError, match="placeholder"):
        add_placeholder(tokenizer, text_encoder, Token(placeholder=second, num_vectors=2))


@pytest.mark.parametrize("initializer", [" ", "\t", "dog\x07", "\udcff"])
def test_refuses_an_initializer_without_tokens(tokenizer, text_encoder, initializer):
    with pytest.raises(UserError, match="initializer"):
        add_placeholder(tokenizer, text_encoder, Token(initializer=initializer))


def test_a_prompt_that_cuts_the_token_off_is_refused(tokenizer, text_encoder):
    """Its vectors would never be trained, and nothing would show it."""
    placeholder = add_placeholder(tokenizer, text_encoder, Token(num_vectors=3))
    check_prompts(tokenizer, placeholder, ["a photo of a <rare> dog", "a <rare> dog " + "dog " * 30])
    with pytest.raises(UserError, match="2 of the 3 vectors"):
        check_prompts(tokenizer, placeholder, ["dog " * 21 + "<rare>"])


def test_mean_norm():
    assert mean_norm(torch.tensor([[3.0, 4.0], [0.0, 1.0]])) == 3.0


@pytest.mark.parametrize("num_vectors", [1, 3])
def test_stock_diffusers_loads_the_file(pipeline, tokenizer, text_encoder, tmp_path, num_vectors):
    """And a picture made with it equals the one from the encoder that was trained."""
    placeholder = add_placeholder(tokenizer, text_encoder, Token(num_vectors=num_vectors))
    with torch.no_grad():
        text_encoder.get_input_embeddings().weight[placeholder.token_ids] = torch.randn(num_vectors, 16)
    path = tmp_path / embedding_file_name("<rare>")
    save_embedding(path, placeholder.name, rows_of(text_encoder)[placeholder.token_ids])

    pipeline.load_textual_inversion(str(path))

    assert torch.equal(rows_of(pipeline.text_encoder), rows_of(text_encoder))
    assert pipeline.tokenizer.get_vocab() == tokenizer.get_vocab()

    def draw(seed=0):
        generator = torch.Generator().manual_seed(seed)
        return pipeline("a <rare> dog", num_inference_steps=2, generator=generator, output_type="pt").images

    theirs = draw()
    pipeline.tokenizer, pipeline.text_encoder = tokenizer, text_encoder
    assert torch.equal(draw(), theirs)


def test_save_then_load_gives_name_and_rows(tmp_path):
    rows = torch.randn(3, 16)
    save_embedding(tmp_path / "new" / "rare.safetensors", "<rare>", rows)
    name, loaded = load_embedding(tmp_path / "new" / "rare.safetensors")
    assert name == "<rare>"
    assert torch.equal(loaded[""], rows)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["rare.safetensors"]


def test_a_file_that_cannot_be_written_or_read_is_one_line(tmp_path):
    (tmp_path / "file").write_bytes(b"no safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        save_embedding(tmp_path / "file" / "rare.safetensors", "<rare>", torch.zeros(1, 4))
    with pytest.raises(UserError, match="cannot write"):
        save_embedding(tmp_path / "folder.safetensors", "<rare>", torch.zeros(1, 4))
    with pytest.raises(UserError, match="cannot read"):
        load_embedding(tmp_path / "missing")
    with pytest.raises(UserError, match="no safetensors"):
        load_embedding(tmp_path / "file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.safetensors"]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("<rare>", "rare.safetensors"),
        ("<a/b>", "a-b.safetensors"),
        ("***", "token.safetensors"),
        ("<été>_1", "été-_1.safetensors"),
    ],
)
def test_file_name(name, file):
    assert embedding_file_name(name) == file


@pytest.mark.parametrize(
    "rows",
    [torch.zeros(0, 16), torch.zeros(0), torch.zeros(2, 0), torch.full((1, 16), torch.inf), torch.ones(1, 16).int()],
)
def test_a_file_of_no_rows_or_no_numbers_is_one_line(tmp_path, rows):
    save_file({"<rare>": rows}, tmp_path / "rare.safetensors")
    with pytest.raises(UserError) as caught:
        load_embedding(tmp_path / "rare.safetensors")
    assert len(str(caught.value).splitlines()) == 1
