"""What people write for a provider when they mean one by another name."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from account_pool.config.problems import unknown

#: Names of vendors, products and models, and the providers they may mean, likeliest first;
#: only those that there are get named.
_MEANT: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("github", "gh"), ("copilot", "github-models")),
    **dict.fromkeys(("github-copilot", "copilot-chat"), ("copilot",)),
    **dict.fromkeys(
        ("google", "google-ai", "googleai", "google-genai", "ai-studio", "aistudio"),
        ("gemini",),
    ),
    **dict.fromkeys(("code-assist", "gemini-code-assist"), ("gemini-cli",)),
    "claude": ("claude-code", "anthropic"),
    **dict.fromkeys(("claude-max", "claude-pro"), ("claude-code",)),
    "claude-api": ("anthropic",),
    "chatgpt": ("codex", "openai"),
    **dict.fromkeys(("chatgpt-plus", "openai-codex", "codex-cli"), ("codex",)),
    "gpt": ("openai", "codex"),
    **dict.fromkeys(("grok", "x-ai", "x.ai"), ("xai",)),
    **dict.fromkeys(("azure-openai", "azureopenai", "microsoft"), ("azure",)),
    **dict.fromkeys(("pplx", "sonar"), ("perplexity",)),
    "open-router": ("openrouter",),
    **dict.fromkeys(("together-ai", "togetherai"), ("together",)),
    "fireworks-ai": ("fireworks",),
    "mistralai": ("mistral",),
    **dict.fromkeys(("glm", "zhipu", "bigmodel", "z.ai", "z-ai"), ("zai",)),
    "kimi": ("kimi-code", "moonshot"),
    "kimi-for-coding": ("kimi-code",),
    **dict.fromkeys(("qwen", "alibaba", "bailian"), ("dashscope",)),
    **dict.fromkeys(("doubao", "volcengine", "byteplus"), ("ark",)),
    **dict.fromkeys(("zen", "opencode"), ("opencode-zen",)),
    "ollama": ("ollama-cloud",),
    "weights-and-biases": ("wandb",),
    **dict.fromkeys(("one-api", "newapi"), ("new-api",)),
}
#: Spellings of an API that cannot be pooled, by the name it is known by here.
UNSWAPPABLE_NAMES: Mapping[str, str] = {
    **dict.fromkeys(("vertexai", "vertex-ai", "google-vertex"), "vertex"),
    **dict.fromkeys(("aws", "amazon", "aws-bedrock", "amazon-bedrock"), "bedrock"),
}


def unknown_provider(name: str, known: Collection[str]) -> str:
    """Return the remedy for *name*, which is none of *known*: who was meant, or all of them."""
    meant = [provider for provider in _MEANT.get(name.strip().lower(), ()) if provider in known]
    return f"did you mean {' or '.join(meant)}?" if meant else unknown(name, sorted(known))
