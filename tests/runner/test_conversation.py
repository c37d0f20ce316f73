"""Conversations: each turn reads what is new, and nothing that went wrong before stays in them."""

from __future__ import annotations

import pytest
from changed_file import STORY_TEMPLATE, write_chat

from quantcli.core.errors import GenerationError
from quantcli.runner.cache import Cache
from quantcli.runner.load import load_model
from quantcli.runner.session import Session
from quantcli.runner.text.chat import ChatTemplate, Conversation
from quantcli.runner.text.generate import Generation, Limits
from quantcli.runner.text.sampling import Sampler
from quantcli.runner.text.sampling_options import SamplingOptions

GREEDY = SamplingOptions(temperature=0)


@pytest.fixture(scope="module")
def loaded(stories, tmp_path_factory):
    return load_model(write_chat(stories, tmp_path_factory.mktemp("chat") / "chat.gguf"))


@pytest.fixture
def started(loaded):
    """Begins a conversation: a function of its limits and other options, which gives it and its session."""

    def start(limits=Limits(8), context=128, **options):  # noqa: B008 -- it is frozen
        session = Session(loaded.model, Cache(loaded.model.sizes, context))
        template = ChatTemplate(loaded.metadata, loaded.tokenizer)
        return Conversation(template, session, Sampler(GREEDY), limits, **options), session

    return start


def say(conversation: Conversation, message: str) -> Generation:
    answer = conversation.ask(message)
    assert "".join(answer) == answer.text
    conversation.record(answer)
    return answer


def test_a_turn_reads_only_what_is_new_and_answers_as_if_it_had_read_all(loaded, started):
    conversation, session = started()
    first = say(conversation, "Once upon a time")
    assert first.prompt_read == len(first.prompt) == 5
    second = say(conversation, " Then a dog")
    # The last token of the first answer was not read, its end token and the message are new.
    new = loaded.tokenizer.encode(" Then a dog", add_special=False)
    assert list(second.prompt[: -len(new)]) == [*first.prompt, *first.tokens, loaded.tokenizer.eos]
    assert second.prompt_read == len(new) + 2
    assert session.tokens == [*second.prompt, *second.tokens[:-1]]
    fresh = Session(loaded.model, Cache(loaded.model.sizes, 128))
    again = Generation(fresh, loaded.tokenizer, second.prompt, Sampler(GREEDY), Limits(8))
    assert "".join(again) == second.text
    assert again.prompt_read == len(second.prompt)
    roles = [(message["role"], message["content"]) for message in conversation.messages]
    assert roles == [
        ("user", "Once upon a time"), ("assistant", first.text), ("user", " Then a dog"), ("assistant", second.text),
    ]  # fmt: skip


def test_an_interrupted_answer_stays_as_far_as_it_came(loaded, started):
    conversation, session = started(Limits(50))
    answer = conversation.ask("Once upon a time")
    pieces = iter(answer)
    begun = next(pieces) + next(pieces)
    conversation.record(answer)
    del pieces
    assert conversation.messages[-1] == {"role": "assistant", "content": begun}
    following = say(conversation, " The cat")
    assert loaded.tokenizer.decode(following.prompt).startswith("Once upon a time" + begun)
    assert following.prompt_read < len(following.prompt)
    assert session.tokens[: len(following.prompt)] == list(following.prompt)


def test_a_question_without_an_answer_is_forgotten(started):
    conversation, _ = started(Limits(0))
    say(conversation, "Once")
    assert conversation.messages == []


def test_a_stop_string_is_no_part_of_the_answer_in_the_next_turn(loaded, started):
    conversation, _ = started(Limits(20, stop=("girl",)))
    first = say(conversation, "Once upon a time")
    assert first.text == ", there was a little "
    second = say(conversation, " Then")
    assert loaded.tokenizer.decode(second.prompt) == "Once upon a time, there was a little   Then"


def test_a_system_message_comes_first_and_outlives_the_conversation(started):
    conversation, session = started(system="Be sad. ")
    answer = say(conversation, "Once")
    assert conversation.messages[0] == {"role": "system", "content": "Be sad. "}
    conversation.clear()
    assert conversation.messages == [{"role": "system", "content": "Be sad. "}]
    again = say(conversation, "Once")
    assert again.text == answer.text
    assert again.prompt_read == 1
    assert session.cache.length == len(again.prompt) + len(again.tokens) - 1


def test_a_conversation_that_fills_the_context_says_so_and_can_begin_anew(started):
    conversation, _ = started(Limits(50), context=30)
    assert say(conversation, "Once upon a time").stopped == "context"
    with pytest.raises(GenerationError, match="too many for an answer"):
        say(conversation, " Then")
    assert len(conversation.messages) == 2
    conversation.clear()
    assert say(conversation, "Once upon a time").stopped == "context"


def test_a_template_that_changes_what_was_said_is_read_from_there_on(stories, tmp_path):
    trimming = STORY_TEMPLATE.replace("message.content", "message.content | trim")
    loaded = load_model(write_chat(stories, tmp_path / "trim.gguf", trimming))
    session = Session(loaded.model, Cache(loaded.model.sizes, 128))
    template = ChatTemplate(loaded.metadata, loaded.tokenizer)
    conversation = Conversation(template, session, Sampler(GREEDY), Limits(9))
    say(conversation, "Once upon a time, there was a")
    second = say(conversation, "Then")
    assert list(second.prompt) == template.encode(template.render([*conversation.messages[:2], conversation.messages[2]]))
    assert second.prompt_read < len(second.prompt)
