"""Which dotted paths are calls to a model.

A path is how a value was come by: `openai.OpenAI().chat.completions.create` is that attribute of what that class
returned. It begins with `?` where nothing says what the first name is. Then only a chain that nothing else has counts,
or one with the arguments that only a model takes: Twilio and Django have a `messages.create` too.
"""

from __future__ import annotations

import re
from collections.abc import Set
from typing import NamedTuple


class Api(NamedTuple):
    """A call that asks a model."""

    library: str
    operation: str
    is_batch: bool
    stream: bool  # by its name; an argument may say so too
    is_async: bool  # by its name or its client
    agent: bool = False  # asks as often as it likes


METHODS = frozenset(
    "create parse stream complete complete_async stream_async parse_async chat chat_stream create_async embeddings "
    "completion acompletion text_completion atext_completion embedding aembedding batch_completion "
    "batch_completion_models responses aresponses create_batch acreate_batch invoke ainvoke astream astream_events "
    "batch abatch batch_as_completed abatch_as_completed predict apredict run arun generate agenerate "
    "embed_documents embed_query aembed_documents aembed_query run_sync run_stream run_stream_sync run_stream_events "
    "iter generate_content generate_content_stream generate_content_async embed_content send_message "
    "send_message_stream send_message_async create_with_completion create_partial create_iterable acreate".split()
)

# What these return is still the client, or what it is an attribute of.
_SAME = re.compile(r"\.(?:with_raw_response|with_streaming_response|with_options\(\)|copy\(\)|beta|aio|v1)(?=\.|$)")
_OPENAI = r"(?:\w+\.)*openai(?:\.\w+)*(?:\.(?:Async)?(?:Azure)?OpenAI\(\))?"  # langfuse.openai and others wrap it
_LANGCHAIN = (
    r"lang(?:chain|graph)\w*(?:\.\w+)*\.(?:(?:Azure)?Chat(?!Prompt|Message|Generation|Result)\w+|init_chat_model|LLM"
    r"|Base(?:Chat|Language)Model|BaseLLM|\w*OpenAI|Anthropic(?:LLM)?|\w+LLM|\w+Embeddings|init_embeddings"
    r"|HuggingFace\w+|Ollama)\(\)"
)
_AGENTS = r"lang(?:chain|graph)\w*(?:\.\w+)*\.(?:create_\w*agent|AgentExecutor(?:\.\w+)?|initialize_agent)\(\)"
_CHAINS = r"langchain\w*(?:\.\w+)*\.(?:\w*Chain(?:\.\w+)?|create_\w*chain)\(\)"
_KEPT = r"(?:\.(?:bind|bind_tools|with_\w+|configurable_\w+|pipe)\(\))*"  # a runnable stays one
_RUN = r"\.(?:a?invoke|a?stream|astream_events|a?batch|a?batch_as_completed|a?predict|a?run|a?generate|a?embed_\w+)"
_GOOGLE = r"(?:google\.genai(?:\.\w+)*\.(?:Async)?Client\(\)|\?[\w.()]*)"
_GEMINI = r"(?:google\.generativeai|vertexai)(?:\.\w+)*\.GenerativeModel(?:\.\w+)?\(\)"

# (library, operation, full path). The first that matches counts.
_KNOWN: tuple[tuple[str, str, re.Pattern[str]], ...] = tuple(
    (library, operation, re.compile(pattern))
    for library, operation, pattern in (
        (
            "instructor",
            "chat",
            r"instructor(?:\.\w+)*\.(?:from_\w+|a?patch|Async\w*Instructor|Instructor)\(\)(?:\.\w+)*"
            r"\.(?:create|create_with_completion|create_partial|create_iterable)",
        ),
        ("instructor", "chat", r".+\.chat\.completions\.create_(?:with_completion|partial|iterable)"),
        ("openai", "chat", r".+\.chat\.completions\.(?:create|parse|stream)"),
        ("openai", "responses", _OPENAI + r"\.responses\.(?:create|parse|stream)"),
        ("openai", "embeddings", _OPENAI + r"\.embeddings\.create"),
        (
            "openai",
            "chat",
            _OPENAI + r"\.completions\.create"
            r"|openai\.(?:ChatCompletion|Completion)\.a?create",
        ),
        ("openai", "embeddings", r"openai\.Embedding\.a?create"),
        ("openai", "batch", _OPENAI + r"\.batches\.create"),
        ("anthropic", "batch", r"(?:anthropic\..+|\?.+)\.messages\.batches\.create"),
        (
            "anthropic",
            "chat",
            r"anthropic(?:\.\w+)*\.(?:Async)?Anthropic\w*\(\)\.(?:messages\.(?:create|stream|parse)|completions\.create)",
        ),
        ("google-genai", "chat", _GOOGLE + r"\.models\.generate_content(?:_stream)?"),
        ("google-genai", "embeddings", _GOOGLE + r"\.models\.embed_content"),
        ("google-genai", "batch", r"google\.genai(?:\.\w+)*\.Client\(\)\.batches\.create"),
        ("google-genai", "chat", r"google\.genai(?:\.\w+)*\.Client\(\)\.chats\.create\(\)\.send_message(?:_stream)?"),
        ("google-genai", "chat", _GEMINI + r"(?:\.start_chat\(\)\.send_message|\.generate_content)(?:_async)?"),
        ("google-genai", "embeddings", r"google\.generativeai\.embed_content"),
        ("google-genai", "chat", r"\?(?:\w+\.)*(?:\w+_)?(?:model|gemini)\.generate_content(?:_async)?"),
        (
            "mistral",
            "chat",
            r"mistralai(?:\.\w+)*\.Mistral\w*\(\)(?:\.(?:chat|fim|agents)(?:\.(?:complete|stream|parse)(?:_async)?)?"
            r"|\.chat_stream)",
        ),
        ("mistral", "embeddings", r"mistralai(?:\.\w+)*\.Mistral\w*\(\)\.embeddings(?:\.create(?:_async)?)?"),
        ("mistral", "batch", r"mistralai(?:\.\w+)*\.Mistral\w*\(\)\.batch\.jobs\.create(?:_async)?"),
        ("litellm", "chat", r"litellm(?:\.main)?(?:\.Router\(\))?\.a?(?:text_)?completion"),
        ("litellm", "chat", r"litellm(?:\.main)?\.batch_completion\w*"),
        ("litellm", "responses", r"litellm(?:\.\w+)?(?:\.Router\(\))?\.a?responses"),
        ("litellm", "embeddings", r"litellm(?:\.main)?(?:\.Router\(\))?\.a?embedding"),
        ("litellm", "batch", r"litellm(?:\.\w+)*(?:\.Router\(\))?\.a?create_batch"),
        ("langchain", "agent", _AGENTS + _KEPT + _RUN),
        ("langchain", "chat", f"(?:{_LANGCHAIN}|{_CHAINS}){_KEPT}{_RUN}"),
        ("pydantic-ai", "agent", r"pydantic_ai(?:\.\w+)*\.Agent\(\)\.(?:run|run_sync|iter|run_stream\w*)"),
    )
)

# Chains that other libraries have too -> arguments of which one must be there, besides `model`.
_SHAPED: tuple[tuple[str, str, re.Pattern[str], frozenset[str]], ...] = tuple(
    (library, operation, re.compile(pattern), frozenset(needs.split()))
    for library, operation, pattern, needs in (
        ("openai", "responses", r".+\.responses\.(?:create|parse|stream)", "input prompt instructions messages"),
        ("openai", "embeddings", r".+\.embeddings\.create", "input"),
        ("anthropic", "chat", r".+\.messages\.(?:create|stream|parse)", "messages max_tokens"),
        ("mistral", "chat", r".+\.chat\.(?:complete|stream)(?:_async)?", "messages"),
    )
)
_MODEL = re.compile(f"(?:{_LANGCHAIN}|{_AGENTS}|{_CHAINS}){_KEPT}")
_PROMPT = re.compile(
    r"langchain\w*(?:\.\w+)*\.\w*(?:Prompt\w*|Template|hub\.pull)(?:\.\w+)?\(\).*|langchain\w*\.hub\.pull\(\)"
)
_ROOT = re.compile(
    r"(?:openai|anthropic|google\.(?:genai|generativeai)|vertexai|mistralai|litellm|lang(?:chain|graph)\w*|pydantic_ai|instructor)"
    r"(?:\.|$)"
)
_STREAMS = re.compile(r"stream|create_partial")
_ASYNC = re.compile(
    r"\.Async|\.aio(?:\.|$)|_async$|\.(?:a(?:completion|text_completion|embedding|responses|create)\w*)$"
)
_RUNS_ASYNC = re.compile(r"\.(?:a(?:invoke|stream|batch|predict|run|generate|embed)\w*)$")


def api_of(path: str, arguments: Set[str]) -> Api | None:
    """What a call of `path` with these named arguments asks for, or None: it is no model, or may be none.

    `**` among the arguments is one whose names are not known.
    """
    short = _SAME.sub("", path)
    for library, operation, pattern in _KNOWN:
        if pattern.fullmatch(short):
            found = (library, operation)
            break
    else:
        for library, operation, pattern, needs in _SHAPED:
            if "model" in arguments and needs & arguments and pattern.fullmatch(short):
                found = (library, operation)
                break
        else:
            if "**" in arguments and (shaped := _named(short)):
                found = shaped
            elif "response_model" in arguments and "messages" in arguments and short.endswith(".create"):
                found = ("instructor", "chat")
            elif "requests" in arguments and "?" in short and short.endswith(".batches.create"):
                found = ("anthropic", "batch")
            elif {"input_file_id", "completion_window"} <= arguments and short.endswith(".batches.create"):
                found = ("openai", "batch")
            else:
                return None
    library, operation = found
    if library == "openai" and "response_model" in arguments:
        library = "instructor"  # a patched client that came from elsewhere
    last = short.rpartition(".")[2]
    is_async = bool(_ASYNC.search(path)) or (library == "langchain" and bool(_RUNS_ASYNC.search(path)))
    is_async |= library == "pydantic-ai" and last in {"run", "iter", "run_stream", "run_stream_events"}
    return Api(library, operation, operation == "batch", bool(_STREAMS.search(last)), is_async, operation == "agent")


def _named(path: str) -> tuple[str, str] | None:
    """A shaped chain whose arguments are not written out, on something that is called after its library."""
    return next(
        (
            (library, operation)
            for library, operation, pattern, _ in _SHAPED
            if library in path.lower() and pattern.fullmatch(path)
        ),
        None,
    )


def is_library(path: str) -> bool:
    """Whether a path begins at a library that asks models: a file of the tree of that name is not it."""
    return _ROOT.match(path) is not None


def is_runnable(path: str) -> bool:
    """Whether a path is a model, chain or agent of LangChain, which `|` makes chains of."""
    return _MODEL.fullmatch(path) is not None


def is_prompt(path: str) -> bool:
    """Whether a path is a prompt of LangChain: what it is piped into is a model."""
    return _PROMPT.fullmatch(path) is not None
