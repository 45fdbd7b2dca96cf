"""The few numbers per row that fix a soft top-k threshold, collected in one sweep over score tiles.

sum_j sigma(alpha (S_j + t)) = k leaves sigma <= k/m for every score below the m-th best. Down there sigma(x) is
e^x - e^2x + e^3x to (k/(m-k))^3, so the m best scores and three power sums of the rest stand for the whole row.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_POWERS = 3
GROUP = 32


class TopScores:
    """The m best scores of every row and, of all others, sum_j exp(p alpha (S_j - reference)) for p = 1, 2, 3.

    Args:
        num_rows: R.
        num_top: The number m of best scores.
        alpha: Steepness of the sigmoid.
        like: A tensor with the type and device of the scores.
    """

    def __init__(self, num_rows: int, num_top: int, alpha: float, like: Tensor) -> None:
        self.num_top = num_top
        self.alpha = alpha
        self.top = like.new_full((num_rows, num_top), -torch.inf)  # (R, m)
        self.powers = like.new_zeros(num_rows, NUM_POWERS)  # (R, 3)
        self._found = like.new_full((num_rows, num_top), -torch.inf)  # (R, m) above reference, not yet merged
        self._num_found = torch.zeros(num_rows, dtype=torch.int64, device=like.device)
        self._open = True  # some row has not seen m scores yet

    @property
    def reference(self) -> Tensor:
        """The m-th best score (R, 1) at the last merge, 0 where there is none yet (its power sums are 0)."""
        last = self.top[:, -1:]
        return last.masked_fill(last == -torch.inf, 0)

    def add(self, scores: Tensor) -> None:
        """Take in a tile (R, T); -inf marks entries that do not count."""
        if self._open:
            self._merge(scores)
            return
        below = self.reference - scores  # (R, T), negative for candidates
        rows, columns = _negative_entries(below)
        counts = rows.bincount(minlength=len(scores))  # (R,)
        # A merge sorts a whole tile: it waits until candidates find no room.
        if bool((self._num_found + counts > self.num_top).any()):
            self._merge(scores)
            return
        # rows ascend, so an entry's rank within its row is its place less where the row begins.
        rank = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        self._found[rows, self._num_found[rows] + rank] = scores[rows, columns]
        self._num_found += counts
        # Candidates are left out of the sums until a merge decides which of them stay above.
        self.powers += self._power_sums(below)

    def finish(self) -> None:
        """Merge what is pending; call once after the last tile."""
        self._merge(self.top[:, :0])

    def sums(self, threshold: Tensor) -> tuple[Tensor, Tensor]:
        """sum_j sigma(alpha (S_j + t)) and its derivative in t, for t (R,), each (R,)."""
        probability = torch.sigmoid(self.alpha * (self.top + threshold[:, None]))  # (R, m)
        tail = self._tail(threshold)  # (R, 3)
        order = torch.arange(1, NUM_POWERS + 1, device=tail.device)
        slope = (probability * (1 - probability)).sum(dim=1) + (tail * order).sum(dim=1)
        return probability.sum(dim=1) + tail.sum(dim=1), self.alpha * slope

    def error(self, threshold: Tensor) -> Tensor:
        """(R,) a bound on what the truncated series adds to the sum at threshold (R,)."""
        odds = (self.alpha * (self.reference[:, 0] + threshold)).exp()  # (R,)
        return odds**NUM_POWERS * self._tail(threshold)[:, 0]

    def log_sum(self) -> tuple[Tensor, Tensor]:
        """(R,) the largest alpha S of every row and the sum of exp(alpha S - largest)."""
        largest = self.alpha * self.top[:, 0]
        finite = largest.masked_fill(largest == -torch.inf, 0)
        top = (self.alpha * self.top - finite[:, None]).exp().sum(dim=1)
        return finite, top + self.powers[:, 0] * (self.alpha * self.reference[:, 0] - finite).exp()

    def _tail(self, threshold: Tensor) -> Tensor:
        order = torch.arange(1, NUM_POWERS + 1, device=threshold.device)
        sign = 1 - 2 * ((order + 1) % 2)  # +, -, +: the series of the sigmoid
        return sign * self.powers * (self.alpha * (self.reference + threshold[:, None]) * order).exp()  # (R, 3)

    def _power_sums(self, below: Tensor) -> Tensor:
        """(R, 3) from reference - scores (R, T), whose entries under 0 do not count. Overwrites its argument."""
        # Entries at or above the reference become exp(-inf) = 0. Powers by products: exp is the costly part.
        power = torch.threshold_(below, -torch.finfo(below.dtype).tiny, torch.inf).mul_(-self.alpha).exp_()
        first = power.sum(dim=1)
        square = power * power
        return torch.stack([first, square.sum(dim=1), square.mul_(power).sum(dim=1)], dim=1)

    def _merge(self, scores: Tensor) -> None:
        values = torch.cat([self.top, self._found, scores], dim=1)  # (R, n)
        before = self.reference  # (R, 1)
        self.top, places = values.topk(self.num_top, dim=1)
        order = torch.arange(1, NUM_POWERS + 1, device=values.device)
        # The reference only rises: old sums, measured from it, shrink. The clamp is for a first one, whose sums are 0.
        self.powers *= (self.alpha * (before - self.reference) * order).clamp_max(0).exp()
        # What fell out of the best joins the rest; the m best themselves are hidden from it.
        self.powers += self._power_sums(self.reference - values.scatter(1, places, -torch.inf))
        self._found.fill_(-torch.inf)
        self._num_found.zero_()
        self._open = bool((self.top[:, -1] == -torch.inf).any())


def _negative_entries(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows, ascending, and columns of the entries under 0. Looks only into groups of columns whose minimum is."""
    # Nearly all groups are without a candidate, which their minimum tells.
    if values.shape[1] % GROUP:
        rows, columns = (values < 0).nonzero(as_tuple=True)
        return rows, columns
    groups = values.view(len(values), -1, GROUP)  # (R, T / 32, 32)
    rows, columns = (groups.amin(dim=2) < 0).nonzero(as_tuple=True)
    opened = groups[rows, columns]  # (n, 32)
    place, entry = (opened < 0).nonzero(as_tuple=True)
    return rows[place], columns[place] * GROUP + entry
