"""What people write for a provider when they mean one by another name."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from account_pool.config.problems import unknown

#: Names of vendors, products and models, and the providers they may mean, likeliest first;
#: only those that there are get named.
_MEANT: Mapping[str, tuple[str, ...]] = {
    "github": ("copilot", "github-models"),
    "gh": ("copilot", "github-models"),
    "github-copilot": ("copilot",),
    "copilot-chat": ("copilot",),
    "google": ("gemini",),
    "google-ai": ("gemini",),
    "googleai": ("gemini",),
    "google-genai": ("gemini",),
    "ai-studio": ("gemini",),
    "aistudio": ("gemini",),
    "code-assist": ("gemini-cli",),
    "gemini-code-assist": ("gemini-cli",),
    "claude": ("claude-code", "anthropic"),
    "claude-max": ("claude-code",),
    "claude-pro": ("claude-code",),
    "claude-api": ("anthropic",),
    "chatgpt": ("codex", "openai"),
    "chatgpt-plus": ("codex",),
    "gpt": ("openai", "codex"),
    "openai-codex": ("codex",),
    "codex-cli": ("codex",),
    "grok": ("xai",),
    "x-ai": ("xai",),
    "x.ai": ("xai",),
    "azure-openai": ("azure",),
    "azureopenai": ("azure",),
    "microsoft": ("azure",),
    "pplx": ("perplexity",),
    "sonar": ("perplexity",),
    "open-router": ("openrouter",),
    "together-ai": ("together",),
    "togetherai": ("together",),
    "fireworks-ai": ("fireworks",),
    "mistralai": ("mistral",),
    "glm": ("zai",),
    "zhipu": ("zai",),
    "bigmodel": ("zai",),
    "z.ai": ("zai",),
    "z-ai": ("zai",),
    "kimi": ("kimi-code", "moonshot"),
    "kimi-for-coding": ("kimi-code",),
    "qwen": ("dashscope",),
    "alibaba": ("dashscope",),
    "bailian": ("dashscope",),
    "doubao": ("ark",),
    "volcengine": ("ark",),
    "byteplus": ("ark",),
    "zen": ("opencode-zen",),
    "opencode": ("opencode-zen",),
    "ollama": ("ollama-cloud",),
    "weights-and-biases": ("wandb",),
    "one-api": ("new-api",),
    "newapi": ("new-api",),
}
#: Spellings of an API that cannot be pooled, by the name it is known by here.
UNSWAPPABLE_NAMES: Mapping[str, str] = {
    "vertexai": "vertex",
    "vertex-ai": "vertex",
    "google-vertex": "vertex",
    "aws": "bedrock",
    "amazon": "bedrock",
    "aws-bedrock": "bedrock",
    "amazon-bedrock": "bedrock",
}


def unknown_provider(name: str, known: Collection[str]) -> str:
    """Return the remedy for *name*, which is none of *known*: who was meant, or all of them."""
    meant = [provider for provider in _MEANT.get(name.strip().lower(), ()) if provider in known]
    return f"did you mean {' or '.join(meant)}?" if meant else unknown(name, sorted(known))
