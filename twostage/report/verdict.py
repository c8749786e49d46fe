"""The verdict in words: what can be told, how surely, and what cannot."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from twostage.report import glossary
from twostage.report.cautions import cautions
from twostage.report.formats import cost, interval, listed, number, plural, signed
from twostage.report.pooling import BASE, COSTS, MANY, REAL, Estimate, Pool

Standing = Literal["told", "open", "single"]


@dataclass(frozen=True)
class Gap:
    """How far another strategy is from the best one.

    Attributes:
        name: of the other strategy.
        text: the difference and its interval.
        told: whether the interval leaves out 0; None where there is no interval.
    """

    name: str
    text: str
    told: bool | None


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Attributes:
        question: "Shows the subject".
        figure: that answers it.
        title: of the figure.
        standing: "told" where one strategy is best for real, "open" where that cannot be told, "single" where there
            is nothing to compare.
        names: the best, or those that cannot be told apart at the top.
        value: of the first of them.
        reached: the value with its interval, in words.
        gaps: to the others, the nearest first; of one strategy, to the untouched base.
        scale: values of the untouched base and of real photos, in words.
    """

    question: str
    figure: str
    title: str
    standing: Standing
    names: tuple[str, ...]
    value: Estimate
    reached: str
    gaps: tuple[Gap, ...]
    scale: str

    @property
    def shared(self) -> str:
        """Who shares the lead, in words; empty where nobody can be told from the best."""
        return listed(list(self.names), "or") if 1 < len(self.names) <= len(self.gaps) else ""

    @property
    def lines(self) -> list[str]:
        """The answer as sentences."""
        found = [f"{self.names[0]}: {self.reached}."]
        if self.standing == "single":
            sure = {True: "a difference that can be told", False: "which may be none", None: "of too few values"}
            found += [f"Against the {gap.name}: {gap.text}, {sure[gap.told]}." for gap in self.gaps]
        for told, words in ((False, "Not to be told from it"), (True, "Told apart from it")) * (
            self.standing != "single"
        ):
            if gaps := [f"{gap.name} {gap.text}" for gap in self.gaps if bool(gap.told) is told]:
                more = [f"and {len(gaps) - MANY} more"] if len(gaps) > MANY else []
                found.append(f"{words}: {'; '.join([*gaps[:MANY], *more])}.")
        return [*found, f"For scale: {self.scale}."] if self.scale else found


@dataclass(frozen=True)
class Advice:
    """What matters, what to take then, and why."""

    wish: str
    take: str
    why: str


@dataclass(frozen=True)
class Verdict:
    """All that the report says in words.

    Attributes:
        headline: one sentence, with figures.
        summary: the same without figures.
        answers: one for each question that was measured.
        costs: sentences.
        advice: which to take when.
        cautions: what limits all of it.
    """

    headline: str
    summary: str
    answers: tuple[Answer, ...]
    costs: tuple[str, ...]
    advice: tuple[Advice, ...]
    cautions: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class _Question:
    question: str
    figures: tuple[str, ...]
    best: str
    topic: str
    wish: str


_QUESTIONS = (
    _Question(
        "Shows the subject",
        glossary.IDENTITY_FIGURES,
        "shows the subject best",
        "the subject",
        "The subject must be right",
    ),
    _Question(
        "Follows the prompt",
        glossary.PROMPT_FIGURES,
        "follows the prompt best",
        "the prompt",
        "The prompt must be followed",
    ),
    _Question(
        "Keeps the class",
        glossary.CLASS_FIGURES,
        "forgets least of the class",
        "the class",
        "The class must stay as it was",
    ),
    _Question(
        "Draws with variety", glossary.VARIETY_FIGURES, "draws with most variety", "variety", "Pictures must differ"
    ),
)
_COST_WORDS = {
    "train_seconds": ("trains fastest", "Time is short"),
    "peak_memory_bytes": ("needs the least memory", "Memory is short"),
    "result_bytes": ("leaves the smallest result", "The result must be small"),
}


def verdict(pool: Pool) -> Verdict:
    """Judge the runs."""
    asked = [(one, figure) for one in _QUESTIONS if (figure := pool.first(one.figures))]
    if len(pool.strategies) == 1:
        answers = [_alone(pool, one, figure) for one, figure in asked]
    else:
        answers = [found for one, figure in asked if (found := _compared(pool, one, figure))]
    costs = _costs(pool)
    return Verdict(
        headline=_headline(pool, answers, figures=True),
        summary=_headline(pool, answers, figures=False),
        answers=tuple(answers),
        costs=tuple(costs),
        advice=tuple(_advice(pool, asked, answers)),
        cautions=tuple(cautions(pool)),
    )


def _with_interval(found: Estimate) -> str:
    between = interval(found)
    return (
        f"{number(found.value)}, 95 %: {between}"
        if between
        else f"{number(found.value)}, too few values for an interval"
    )


def _gap(pool: Pool, name: str, leader: str, figure: str) -> Gap:
    found = pool.difference(name, leader, figure)
    if found is None:
        return Gap(name, "not measured in the same way", None)
    between = interval(found, sign=True)
    return Gap(name, f"{signed(found.value)} ({between or 'no interval'})", found.decided if between else None)


def _compared(pool: Pool, asked: _Question, figure: str) -> Answer | None:
    leader, tied = pool.leaders(figure)
    if leader is None:
        return None
    value = pool.estimate(leader, figure)
    assert value is not None
    others = [name for name in pool.strategies if name != leader and pool.estimate(name, figure)]

    def distance(name: str) -> float:
        found = pool.difference(leader, name, figure)
        return abs(found.value) if found else 0.0

    gaps = tuple(_gap(pool, name, leader, figure) for name in sorted(others, key=distance))
    standing: Standing = "open" if tied else "told" if others else "single"
    names = (leader, *(gap.name for gap in gaps if not gap.told))
    title = pool.figures[figure].title
    return Answer(
        asked.question, figure, title, standing, names, value, _with_interval(value), gaps, _scale(pool, figure)
    )


def _scale(pool: Pool, figure: str) -> str:
    return listed([f"{row} {number(found.value)}" for row in (BASE, REAL) if (found := pool.estimate(row, figure))])


def _alone(pool: Pool, asked: _Question, figure: str) -> Answer:
    """One strategy: held against the untouched base, where that is known."""
    (name,) = pool.strategies
    value = pool.estimate(name, figure)
    assert value is not None
    gap = pool.difference(name, BASE, figure)
    between = interval(gap, sign=True) if gap else ""
    gaps = (
        (Gap(BASE, f"{signed(gap.value)} ({between or 'no interval'})", gap.decided if between else None),)
        if gap
        else ()
    )
    title = pool.figures[figure].title
    return Answer(
        asked.question, figure, title, "single", (name,), value, _with_interval(value), gaps, _scale(pool, figure)
    )


def _headline(pool: Pool, answers: list[Answer], figures: bool) -> str:
    """The verdict in a sentence, with or without figures."""
    if not answers:
        return f"{plural(len(pool.runs), 'run')}; none of the figures that answer a question was measured."
    first = answers[0]
    hero = first.names[0]
    if len(pool.strategies) == 1:
        return _headline_alone(pool, first, figures)
    if all(answer.standing == "single" for answer in answers):
        return "No two strategies were measured in the same way: nothing can be compared."
    phrases = {one.question: one.best for one in _QUESTIONS}
    topics = {one.question: one.topic for one in _QUESTIONS}
    by_name: dict[str, list[str]] = {}
    shared: dict[tuple[str, ...], list[str]] = {}
    undecided: list[str] = []
    for answer in answers:
        if answer.standing == "told":
            own = pool.estimate(hero, answer.figure)
            beside = f"; {hero}: {number(own.value)}" if own and answer.names[0] != hero else ""
            told = f" ({answer.title} {answer.reached}{beside})" if figures else ""
            by_name.setdefault(answer.names[0], []).append(phrases[answer.question] + told)
        elif answer.standing == "open" and answer.shared:
            shared.setdefault(tuple(sorted(answer.names)), []).append(topics[answer.question])
        elif answer.standing == "open":
            undecided.append(topics[answer.question])
    parts = [f"{name} {listed(words)}" for name, words in by_name.items()]
    parts += [f"{listed(list(names))} share the lead on {listed(on)}" for names, on in shared.items()]
    if undecided:
        parts.append(f"{'on' if parts else 'On'} {listed(undecided)}, no strategy can be told from the best")
    return "; ".join(parts) + "."


def _headline_alone(pool: Pool, first: Answer, figures: bool) -> str:
    hero = first.names[0]
    base = pool.estimate(BASE, first.figure)
    beside = f", where the untouched base has {number(base.value)}" if base else ""
    if figures or first.question != _QUESTIONS[0].question:
        return f"{hero} reaches {first.title} {first.reached}{beside}."
    gap = pool.difference(hero, BASE, first.figure)
    if gap is None:
        return f"{hero} reaches {number(first.value.value)} on {first.title}; the untouched base is not known."
    real = pool.estimate(REAL, first.figure)
    closed = ""
    if base and real and real.value > base.value:
        share = (first.value.value - base.value) / (real.value - base.value)
        closed = f": {share:.0%} of the way from the untouched base to real photos".replace("%", " %")
    if not gap.decided:
        return f"Whether {hero} learned the subject cannot be told from these pictures."
    return (
        f"{hero} learned the subject{closed}."
        if gap.value > 0
        else f"{hero} shows the subject worse than the untouched base."
    )


def _costs(pool: Pool) -> list[str]:
    lines = []
    for name, label in COSTS.items():
        known = {strategy: found.value for strategy in pool.strategies if (found := pool.cost(strategy, name))}
        if not known:
            continue
        if len(known) == 1:
            ((strategy, value),) = known.items()
            lines.append(f"{label}: {cost(name, value)}.")
            continue
        low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
        lines.append(f"{label}: from {cost(name, known[low])} ({low}) to {cost(name, known[high])} ({high}).")
    return lines


def _advice(pool: Pool, asked: list[tuple[_Question, str]], answers: list[Answer]) -> list[Advice]:
    if len(pool.strategies) == 1:
        return []
    wishes = {one.question: one.wish for one, _ in asked}
    found = []
    for answer in answers:
        best = f"{answer.title} {number(answer.value.value)}"
        wish = wishes[answer.question]
        if answer.standing == "told":
            found.append(Advice(wish, answer.names[0], f"{best}, ahead of all others"))
        elif answer.shared:
            found.append(Advice(wish, answer.shared, f"{best} at best; the others cannot be told from it"))
        elif answer.standing == "open":
            found.append(Advice(wish, "any of them", "none can be told from the best"))
    identity, prompt = pool.first(glossary.IDENTITY_FIGURES), pool.first(glossary.PROMPT_FIGURES)
    if identity and prompt and (front := pool.front(prompt, identity)):
        why = "ahead on both, by means" if len(front) == 1 else "the Pareto front, by means: none is beaten on both"
        found.append(Advice("Both subject and prompt count", listed(front, "or"), why))
    return found + _cheapest(pool)


def _cheapest(pool: Pool) -> list[Advice]:
    found = []
    for name, (words, wish) in _COST_WORDS.items():
        known = {strategy: spent.value for strategy in pool.strategies if (spent := pool.cost(strategy, name))}
        if len(known) < 2:
            continue
        least = min(known.values())
        # Times and sizes within a twentieth are the same to whoever waits or stores.
        near = [strategy for strategy, value in known.items() if value <= 1.05 * least]
        if len(near) < len(known):
            why = words if len(near) == 1 else "about the same"
            found.append(Advice(wish, listed(near, "or"), f"{why}: {cost(name, least)}"))
    return found
