"""Progress and result of tuning, with their texts."""

from __future__ import annotations

from dataclasses import dataclass

from zmq_offload.compile.tuning.database import Choice


@dataclass(frozen=True)
class TuningProgress:
    """How far tuning is. Times are in microseconds; `seconds_left` is None until a candidate is measured."""

    function: str
    trials: int
    total_trials: int
    seconds_left: float | None
    rule_us: float
    best_us: float | None

    def __str__(self) -> str:
        left = "" if self.seconds_left is None else f", about {_duration(self.seconds_left)} left"
        best = "none better" if self.best_us is None else f"{self.best_us:,.0f} us"
        function = self.function if len(self.function) <= 40 else f"{self.function[:37]}..."
        return f"{self.trials}/{self.total_trials}{left}; {function}: {self.rule_us:,.0f} us by rule, {best}"


@dataclass(frozen=True)
class Summary:
    """The result of tuning. Its text is what the command prints.

    Attributes
    ----------
    choices : dict of str to Choice
        The fastest schedule of each function, with its times.
    trials : int
        Candidates measured this time.
    interrupted : bool
        Whether Ctrl-C stopped tuning.
    rule_us, best_us : float
        Time of all functions in one run of the model, in microseconds: with the rules' schedules, and with the best.
    """

    choices: dict[str, Choice]
    trials: int
    interrupted: bool
    rule_us: float
    best_us: float

    def __str__(self) -> str:
        if not self.choices:
            return "nothing to tune: no function has a static shape"
        faster = sum(choice.tuned for choice in self.choices.values())
        end = ", interrupted" if self.interrupted else ""
        return (
            f"{faster} of {len(self.choices)} functions are faster than by rule, their sum {self.rule_us / 1e3:.2f} -> "
            f"{self.best_us / 1e3:.2f} ms; {self.trials} trials{end}"
        )


def _duration(seconds_: float) -> str:
    minutes, rest = divmod(round(seconds_), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
