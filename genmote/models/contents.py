"""A conversation as token ids, in which what people wrote stays text: `<|im_end|>` in a message must not end it.

A chat template mixes its own control tokens with the contents of messages. Before it runs, the first character of each
control token's text in the contents gives way to a stand-in, a private-use character that occurs nowhere else; so only
the template's own control tokens are found in what it writes, and then each stand-in becomes its character again.
A template sees one character for one, none of them white space, so trimming, lengths and JSON come out the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from genmote.errors import TemplateError

if TYPE_CHECKING:
    from genmote.models.chat import ChatTemplate
    from genmote.models.tokenizer import Tokenizer

_PRIVATE = range(0xF0000, 0xFFFFE)  # code points that Unicode leaves to private use


def chat_tokens(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> list[int]:
    """Token ids of a rendered conversation (see `ChatTemplate.render`), without a begin token of the tokenizer's own.

    In everything but the roles, the texts of control tokens are text. Raises `TemplateError`.
    """
    contents = Contents(tokenizer, [template.source, messages, tools])
    hidden = [_but_role(contents, message) for message in messages]
    offered = None if tools is None else [contents.hide(tool) for tool in tools]
    return contents.encode(template.render(hidden, tools=offered, **variables))


def chat_turns(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    **variables: Any,
) -> tuple[list[int], list[bool]]:
    """Token ids of a whole conversation, and which of them the assistant says: each of its turns up to the token that
    ends it. A turn's tokens are those that the model would have said after what is before it. Raises `TemplateError`,
    also where the template writes earlier turns otherwise once later ones are there."""
    contents = Contents(tokenizer, [template.source, messages])
    hidden = [_but_role(contents, message) for message in messages]
    whole = template.render(hidden, add_generation_prompt=False, **variables)
    ids: list[int] = []
    said: list[bool] = []
    at = 0
    for index, message in enumerate(hidden):
        if message["role"] != "assistant":
            continue
        before = template.render(hidden[:index], add_generation_prompt=True, **variables)
        until = template.render(hidden[: index + 1], add_generation_prompt=False, **variables)
        if not whole.startswith(until) or not until.startswith(before) or len(before) < at:
            raise TemplateError(
                f"message {index}: the chat template writes it otherwise in a longer conversation; "
                "end the conversation there, or give prompt and completion"
            )
        asked = contents.encode(whole[at : len(before)], start=at == 0)
        answer = contents.encode(whole[len(before) : len(until)], start=False)
        ends = [place for place, token in enumerate(answer) if token in tokenizer.eog_ids]
        end = ends[-1] + 1 if ends else len(answer)  # what a template writes behind it, nobody says
        ids += asked + answer
        said += [False] * len(asked) + [place < end for place in range(len(answer))]
        at = len(until)
    rest = contents.encode(whole[at:], start=at == 0) if at < len(whole) else []
    return ids + rest, said + [False] * len(rest)


def _but_role(contents: Contents, message: Any) -> Any:
    if not isinstance(message, Mapping):
        return message  # the template says what is wrong with it
    return {key: value if key == "role" else contents.hide(value) for key, value in message.items()}


class Contents:
    """Hides control tokens' texts in contents, and encodes what a template made of them."""

    def __init__(self, tokenizer: Tokenizer, all_texts: Any) -> None:
        """`all_texts`: whatever the template may write, in lists and mappings; no stand-in occurs in it."""
        self._tokenizer, self._all_texts = tokenizer, all_texts
        self._characters: dict[str, str] = {}  # stand-in → character

    def hide(self, value: Any) -> Any:
        """The value (text, or lists and mappings of it) with stand-ins; itself where there is nothing to hide."""
        if isinstance(value, str):
            return self._hide(value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(inner) for inner in value]
        return value

    def _hide(self, text: str) -> str:
        while places := [start for start, _, _ in self._tokenizer.control_spans(text)]:
            characters = list(text)
            for place in places:
                characters[place] = self._stand_in(characters[place])
            text = "".join(characters)
        return text

    def _stand_in(self, character: str) -> str:
        for stand_in, own in self._characters.items():
            if own == character:
                return stand_in
        used = set().union(self._characters, *_texts(self._all_texts))
        stand_in = next(chr(point) for point in _PRIVATE if chr(point) not in used)
        self._characters[stand_in] = character
        return stand_in

    def encode(self, text: str, *, start: bool = True) -> list[int]:
        """Token ids of a text in which control tokens are those that are not hidden; `start` False: it goes on."""
        encode = self._tokenizer.encode
        if not self._characters:
            return encode(text, bos=False, special=True, start=start)
        ids: list[int] = []
        for fragment, token in self._fragments(text):
            plain = fragment.translate({ord(stand_in): own for stand_in, own in self._characters.items()})
            ids += encode(plain, bos=False, special=False, start=start)
            ids += [token] if token is not None else []
            start = True
        return ids

    def _fragments(self, text: str) -> Iterator[tuple[str, int | None]]:
        """The texts between control tokens, each with the control token after it."""
        at = 0
        for start, end, token in self._tokenizer.control_spans(text):
            yield text[at:start], token
            at = end
        yield text[at:], None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from _texts(pair)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
