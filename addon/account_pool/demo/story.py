"""What the demo tells: three accounts of one provider, and three questions.

Every secret below is an obvious fake. They never leave this machine, and the demo
uses the real machinery to prove that the client never sees one.
"""

from __future__ import annotations

from dataclasses import dataclass

from account_pool.demo.exchange import Reply, Request, Script
from account_pool.demo.scripts import by_credential, openai

#: What the client sends: no account of the pool, so the provider would turn it away.
CLIENT_TOKEN = "sk-fake-client-000"  # noqa: S105
TOKENS = {
    "work": "sk-fake-work-000",
    "old": "sk-fake-old-000",
    "spare": "sk-fake-spare-000",
}
LABELS = {token: label for label, token in TOKENS.items()}

#: Seconds between two words: slow enough to see that they stream.
WORD_PAUSE_S = 0.06
RATE_LIMIT_S = 38


@dataclass(frozen=True, slots=True)
class Question:
    """One request of the client, and the only answer it should ever see."""

    text: str
    answer: str

    @property
    def words(self) -> list[str]:
        first, *rest = self.answer.split(" ")
        return [first, *(f" {word}" for word in rest)]


QUESTIONS = (
    Question(
        "What happens when my account hits its limit?",
        "The proxy reads the refusal, puts that account on cooldown for as long as it names, "
        "and replays your request on another account. You only see this answer.",
    ),
    Question(
        "And the next request?",
        "It goes straight to an account that can serve; the other two are skipped.",
    ),
    Question(
        "Does it still stream?",
        "Word by word, as the provider sends it. Nothing is held back once it has begun.",
    ),
)


def script() -> Script:
    """Return what the provider says: one account limited, one out of money, one fine."""
    refusals = by_credential(
        {
            TOKENS["work"]: openai.rate_limited(RATE_LIMIT_S),
            TOKENS["old"]: openai.insufficient_quota(),
        }
    )

    def answer(request: Request) -> Reply:
        if request.credential != TOKENS["spare"]:
            return refusals(request)
        asked = request.json()["messages"][-1]["content"]
        question = next(question for question in QUESTIONS if question.text == asked)
        return openai.chat_stream(question.words, WORD_PAUSE_S)

    return answer


def accounts_yaml(port: int) -> str:
    """Return the accounts file of the demo, for a provider at localhost:*port*."""
    accounts = "".join(
        f"  - {{provider: openai, label: {label}, token: {token}}}\n"
        for label, token in TOKENS.items()
    )
    hosts = f"providers:\n  openai: {{hosts: ['localhost:{port}']}}\n"
    return f"accounts:\n{accounts}{hosts}"
