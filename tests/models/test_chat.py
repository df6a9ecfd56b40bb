"""Conversations through a model's own chat template: only the assistant's answers count, and losses are transformers'."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tauspan as ts
from helpers import languages
from tauspan.cli.main import main
from tauspan.core.errors import DataError, ModelError, UsageError
from tauspan.editing import Decoder
from tauspan.experiments.run import Recipe, run
from tauspan.objectives import Chat
from tauspan.tasks import SPLITS, Split, Task

LENGTH = 64
REFUSES = "{% if m['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
ASKS = "{% if add_generation_prompt %}{{ '@assistant:' }}{% endif %}"
PLAIN = (
    "{% for m in messages %}"
    + REFUSES
    + "{{ '@' + m['role'] + ':' + m['content'] + eos_token }}{% endfor %}"
    + ASKS
)
MARKED = (
    "{% for m in messages %}{{ '@' + m['role'] + ':' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + eos_token }}{% endgeneration %}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    + ASKS
)
DROPS = "(m['content'] if loop.last or m['role'] != 'assistant' else '') + eos"
CHANGING = PLAIN.replace("m['content'] + eos", DROPS)
THINKS = PLAIN.replace(
    "m['content'] + eos", "('()' if loop.last and m['role'] == 'assistant' else '') + m['content'] + eos"
)  # as Qwen 3, which puts empty thoughts before the last answer
CHATS = [
    [("user", "add 1"), ("assistant", "2."), ("user", "more é"), ("assistant", "3")],
    [("system", "short"), ("user", "hi"), ("assistant", "hello")],
]


def messages(chat: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in chat]


def written(folder: Path, template: str | None, kind: str = "llama") -> Path:
    languages.write(folder, kind)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    words.chat_template = template
    words.save_pretrained(folder)
    return folder


def task(chats: Any = CHATS, objective: Any = "chat") -> Task:
    given: Any = ([messages(chat) for chat in chats], None)
    return Task.from_tensors("t", [], objective=objective, **dict.fromkeys(SPLITS, given))


def own_loss(folder: Path, chat: list[tuple[str, str]]) -> float:
    """The loss of the answers' tokens, each a byte, with labels written by hand, in float64 from the library's logits."""
    ids: list[int] = []
    labels: list[int] = []
    words = transformers.AutoTokenizer.from_pretrained(folder)
    for role, content in chat:
        for text, counts in ((f"@{role}:", False), (content + languages.END, role == "assistant")):
            made = words(text, add_special_tokens=False)["input_ids"]
            ids += made
            labels += made if counts else [-100] * len(made)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).double().eval()
    wanted = torch.tensor(labels)[1:]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
    return float(torch.nn.functional.cross_entropy(logits[wanted != -100], wanted[wanted != -100]))


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_only_answers_count_and_losses_are_those_of_transformers(template: str, tmp_path: Path) -> None:
    encoder = ts.load(written(tmp_path / "model", template), language=LENGTH).double()
    found = ts.evaluate(encoder, [task()]).tasks[0].loss
    assert found == pytest.approx(sum(own_loss(tmp_path / "model", chat) for chat in CHATS) / 2, rel=1e-10)
    language = encoder.language
    assert language is not None
    passage = language.chat(messages(CHATS[0]))
    assert [passage.text[begin:end] for begin, end in passage.spans or ()] == [
        f"2.{languages.END}",
        f"3{languages.END}",
    ]


def test_what_a_template_writes_before_the_last_answer_belongs_to_it(tmp_path: Path) -> None:
    language = ts.load(written(tmp_path / "model", THINKS), language=LENGTH).language
    assert language is not None
    passage = language.chat(messages(CHATS[0]))
    assert [passage.text[begin:end] for begin, end in passage.spans or ()] == [
        f"2.{languages.END}",
        f"()3{languages.END}",
    ]


def test_a_tokenizers_own_ends_are_not_written_twice(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", PLAIN)
    words = languages.tokenizer(ended=True)
    words.chat_template = PLAIN
    words.save_pretrained(folder)
    encoder = ts.load(folder, language=LENGTH)
    assert encoder.language is not None
    batch, wanted = encoder.language.read([encoder.language.chat(messages(CHATS[1]))], None)
    assert batch["input_ids"][0].tolist().count(256) == 3
    assert wanted[0, wanted[0] != -100].tolist() == [*words("hello")["input_ids"]]


def test_training_and_answers(tmp_path: Path) -> None:
    encoder = ts.load(written(tmp_path / "model", PLAIN), language=LENGTH)
    of = task()
    before = ts.evaluate(encoder, [of]).tasks[0]
    vector = ts.finetune(encoder, of, ts.Settings("linear", lr=3e-3, epochs=3, batch_size=2)).task_vector
    assert ts.evaluate(encoder, [of], vector).tasks[0].value < before.value
    decoder = Decoder(encoder, {"t": vector})
    asked = messages(CHATS[1][:2])
    assert (
        decoder.text(asked).ids
        == decoder.text(f"@system:short{languages.END}@user:hi{languages.END}@assistant:").ids
    )
    assert decoder.generate(asked, {"t": 1.0}, tokens=3) == decoder.generate(
        asked, lambda n: {"t": 1.0}, tokens=3
    )
    with pytest.raises(DataError, match="role and content"):
        decoder.text([{"from": "a"}])


def test_files_of_messages_and_of_questions_are_tasks(tmp_path: Path) -> None:
    chats = tmp_path / "chats.jsonl"
    lines = [messages([("user", f"add {n}"), ("assistant", f"{n + 1}.")]) for n in range(20)]
    chats.write_text("".join(json.dumps({"messages": line, "id": 1}) + "\n" for line in lines))
    of = Task.from_files("sums", chats, objective="chat", shares=(0.6, 0.2, 0.2))
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("question,answer\n" + "".join(f"add {n},{n + 1}.\n" for n in range(20)))
    same = Task.from_files(
        "sums", pairs, text="answer", prompt="question", objective="chat", shares=(0.6, 0.2, 0.2)
    )
    assert same.checksum() == of.checksum()
    assert json.loads(of.split("test").inputs[0])[1]["role"] == "assistant"
    again = Task.from_directory(of.to_directory(tmp_path / "dir"))
    assert again.checksum() == of.checksum()
    assert again.objective == Chat()


WRONG = [
    ("hello", "is no list of messages"),
    ([], "a list of messages is wanted"),
    ({"role": "user"}, "a list of messages is wanted"),
    (["hi"], "message 0 is 'hi'"),
    ([{"from": "human", "value": "hi"}], "call `from` role"),
    ([{"role": "user", "content": "a", "tool_calls": [1]}], "tool_calls"),
    ([{"role": "human", "content": "a"}, {"role": "assistant", "content": "b"}], "the role 'human'"),
    ([{"role": "user", "content": "a"}], "an answer of the assistant to learn from"),
    ([{"role": "assistant", "content": "a"}], "a message before the assistant's"),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}], "is empty"),
    ([{"role": "user", "content": ["a"]}, {"role": "assistant", "content": "b"}], "both texts"),
]


@pytest.mark.parametrize(("row", "said"), WRONG)
def test_rows_that_are_no_conversation_are_told_with_their_place(row: Any, said: str, tmp_path: Path) -> None:
    good = messages(CHATS[1])
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps({"messages": one}) + "\n" for one in [good, row, good]))
    with pytest.raises(DataError, match=said) as error:
        Task.from_files("t", file, objective="chat")
    assert "row 1" in str(error.value)


def test_what_cannot_be_said_of_chats_is_told(tmp_path: Path) -> None:
    encoder = ts.load(written(tmp_path / "model", PLAIN), language=LENGTH)
    bare = ts.load(written(tmp_path / "bare", None), language=LENGTH)
    changing = ts.load(written(tmp_path / "changing", CHANGING), language=LENGTH)
    t5 = ts.load(languages.write(tmp_path / "t5", "t5"), language=LENGTH)
    tool = [[("user", "a"), ("tool", "b"), ("assistant", "c")]] * 2
    long = [[("user", "a" * 80), ("assistant", "c")]] * 2
    strange = Split(["no json"] * 2, torch.zeros(2, dtype=torch.long))
    odd = Task("t", [], dict.fromkeys(SPLITS, strange), objective=Chat())
    language = t5.language
    assert language is not None
    cases: list[tuple[Any, str, Any]] = [
        (ModelError, "no chat template", lambda: ts.evaluate(bare, [task()])),
        (DataError, "no tools here", lambda: ts.evaluate(encoder, [task(tool)])),
        (DataError, "nothing is left to predict", lambda: ts.evaluate(encoder, [task(long)])),
        (DataError, "{% generation %}", lambda: ts.evaluate(changing, [task()])),
        (UsageError, "chat tasks are not for a sequence-to-sequence", lambda: ts.evaluate(t5, [task()])),
        (UsageError, "this is a conversation", lambda: language.begun(messages(CHATS[1]))),
        (DataError, "is no list of messages", lambda: ts.evaluate(encoder, [odd])),
    ]  # fmt: skip
    for error, said, ask in cases:
        with pytest.raises(error, match=said):
            ask()
    assert len(ts.evaluate(changing, [task(CHATS[1:])]).tasks) == 1  # one answer is told apart


@pytest.mark.slow
def test_the_command_line_and_a_recipe_say_chat(tmp_path: Path, capsys: Any) -> None:
    folder = written(tmp_path / "model", PLAIN)
    file = tmp_path / "chats.jsonl"
    rows = [{"messages": messages([("user", f"add {n}"), ("assistant", f"{n + 1}.")])} for n in range(12)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = [
        "data",
        "make",
        str(file),
        "--objective",
        "chat",
        "--shares",
        "0.6",
        "0.2",
        "0.2",
        "-o",
        str(tmp_path / "t"),
    ]
    assert main(made) == 0
    assert "answers are learned" in capsys.readouterr().out
    assert main(["evaluate", str(folder), str(tmp_path / "t"), "--language", str(LENGTH), "--json"]) == 0
    assert "perplexity" in capsys.readouterr().out
    recipe = Recipe.parse(
        f"model: {folder}\ntasks: [{tmp_path / 't'}]\nregimes: [linear]\nlanguage: {LENGTH}\n"
        "finetune: {lr_linear: 1e-3, epochs: 1, batch_size: 4}\ngrid: [0, 1]\n"
    )
    assert "perplexity" in run(recipe, tmp_path / "out").to_markdown()
