"""Several cases, of which a bad one does not cost the others; what failed is told at the end."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tools.io.files import InputError, RunError


@dataclass
class Batch:
    """What became of each case.

    Attributes:
        verb: What is done to a case, such as labelled.
        passed_over: What else lay in the folders, with the reason.
        done: Names of the cases that are done.
        failed: Name of a case that failed to the reason.
    """

    verb: str
    passed_over: Mapping[str, str] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def case(self, name: str) -> Iterator[None]:
        """Note whether the block could use a case: an InputError in it is told at once, and the next case follows."""
        try:
            yield
        except InputError as error:
            self.failed[name] = str(error)
            print(f"{name} failed: {error}", file=sys.stderr)
        else:
            self.done.append(name)

    def refuse_if_all_failed(self) -> None:
        """Raise InputError if no case is left, so that nothing is written."""
        if self.failed and not self.done:
            raise InputError("; ".join(self.failed.values()))

    def close(self) -> None:
        """Print the last line: how many are done, failed and passed over.

        Raises:
            RunError: if a case failed.
        """
        passed = "; ".join(f"{name} ({why})" for name, why in self.passed_over.items())
        others = f", passed over {len(self.passed_over)}: {passed}" if passed else ""
        failed = f", failed {len(self.failed)}" if self.failed else ""
        if failed or others:
            print(f"{self.verb} {len(self.done)}{failed}{others}")
        if self.failed:
            lines = "".join(f"\n  {sentence}" for sentence in self.failed.values())
            count = len(self.done) + len(self.failed)
            raise RunError(f"{len(self.failed)} of {count} cases could not be {self.verb}:{lines}")
