"""Asks an endpoint with OpenAI's own Python client, in all the ways that people do; prints the text of one completion.

    openai_client.py URL MODEL PROMPT

URL ends in /v1. The model's chat template knows no tools: these have to be refused by name.
"""

import asyncio
import json
import sys

from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

url, model, prompt = sys.argv[1:]
client = OpenAI(base_url=url, api_key="none", max_retries=0)
line = {"model": model, "prompt": prompt, "max_tokens": 6, "temperature": 0, "stop": ["\n"]}
# As long as is asked for, whatever the model says.
six = {"model": model, "max_tokens": 6, "extra_body": {"ignore_eos": True}}
with_usage = {"stream": True, "stream_options": {"include_usage": True}}
messages = [{"role": "user", "content": "Define: dog"}]

assert model in [card.id for card in client.models.list().data]
assert client.models.retrieve(model).parent, "an adapter says what it was made for"

answer = client.completions.create(**line)
text = answer.choices[0].text
streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**line, stream=True) if chunk.choices)
assert streamed == text, (streamed, answer)

whole = client.completions.create(**six, prompt=prompt, temperature=0)
chunks = list(client.completions.create(**six, prompt=prompt, temperature=0, **with_usage))
assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text, (chunks, whole)
assert chunks[-1].usage == whole.usage and whole.usage.completion_tokens == 6, (chunks[-1], whole)

chat = client.chat.completions.create(**six, messages=messages, temperature=0)
chunks = list(client.chat.completions.create(**six, messages=messages, temperature=0, **with_usage))
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
assert streamed == chat.choices[0].message.content, (streamed, chat)
assert chunks[-1].usage.completion_tokens == chat.usage.completion_tokens == 6, (chunks[-1], chat)

scored = client.completions.create(**six, prompt=prompt, temperature=0, logprobs=2).choices[0].logprobs
assert len(scored.token_logprobs) == 6 and all(value <= 0 for value in scored.token_logprobs), scored
scored = client.chat.completions.create(**six, messages=messages, temperature=0, logprobs=True, top_logprobs=2)
content = scored.choices[0].logprobs.content
assert len(content) == 6 and all(token.top_logprobs[0].logprob >= token.logprob for token in content), scored

drawn = [client.completions.create(**six, prompt=prompt, seed=7, n=2) for _ in range(2)]
assert [choice.text for choice in drawn[0].choices] == [choice.text for choice in drawn[1].choices], drawn

schema = {
    "type": "object", "properties": {"kind": {"enum": ["animal", "plant"]}}, "required": ["kind"],
    "additionalProperties": False,
}
kind = client.chat.completions.create(
    model=model, messages=messages, max_tokens=300, temperature=0,
    response_format={"type": "json_schema", "json_schema": {"name": "kind", "schema": schema}},
).choices[0]
assert kind.finish_reason == "stop" and json.loads(kind.message.content)["kind"] in ("animal", "plant"), kind

try:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    client.chat.completions.create(model=model, messages=messages, tools=[tool], max_tokens=1)
    raise AssertionError("tools are not refused")
except BadRequestError as error:
    assert (error.code, error.param) == ("unsupported_parameter", "tools"), error
try:
    client.completions.create(**{**line, "model": "nobody"})
    raise AssertionError("an unknown model answers")
except NotFoundError as error:
    assert error.code == "model_not_found", error


async def together() -> None:
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        async def stream() -> str:
            chunks = await client.completions.create(**line, stream=True)
            return "".join([chunk.choices[0].text async for chunk in chunks if chunk.choices])

        async def one() -> str:
            return (await client.completions.create(**line)).choices[0].text

        texts = await asyncio.gather(*(stream() for _ in range(4)), *(one() for _ in range(4)))
        assert set(texts) == {text}, (texts, text)


asyncio.run(together())
print(text.strip())
