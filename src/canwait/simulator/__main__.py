"""`python -m canwait.simulator`: the simulator as a process. Prints its URL on the first line of stdout."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from ..errors import CanwaitError
from .answers import AnswerFn, echo, openai_upstream, replay, schema_answer
from .clock import parse_clock
from .core import Simulator
from .scenario import Scenario


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m canwait.simulator", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clock", default="600x", help="600x, wall, or manual (moved by POST /sim/advance)")
    parser.add_argument("--scenario", default="", help="what goes wrong: expiry=0.2,listing_lag=30s")
    parser.add_argument("--answer", default="schema", help="schema, echo, replay:FILE or upstream:URL")
    parser.add_argument("--folder", type=Path, required=True, help="where everything it knows is kept")
    options = parser.parse_args(arguments)
    try:
        clock, answer = parse_clock(options.clock), _answer(options.answer)
        scenario = Scenario.parse(options.scenario)
    except (ValueError, OSError, CanwaitError) as error:
        parser.error(str(error))
    ended = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: ended.set())
    simulator = Simulator(seed=options.seed, clock=clock, answer=answer, scenario=scenario, folder=options.folder)
    with simulator.serve(options.port) as url:
        sys.stdout.write(f"{url}\n")
        sys.stdout.flush()
        ended.wait()
    simulator.close()
    return 0


def _answer(text: str) -> AnswerFn:
    kind, _, rest = text.partition(":")
    match kind:
        case "schema":
            return schema_answer
        case "echo":
            return echo
        case "replay" if rest:
            return replay(Path(rest))
        case "upstream" if rest:
            return openai_upstream(rest)
    raise ValueError(f"{text!r} is no answer; expected schema, echo, replay:FILE or upstream:URL")


if __name__ == "__main__":
    sys.exit(main())
