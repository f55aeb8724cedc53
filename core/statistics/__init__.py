"""Statistics of tables over few seeds: estimates with intervals, comparisons, and a checklist of the protocol.

Scores are numpy arrays [S] or [S, M]: S seeds (independent trainings), M tasks, one score for each, itself a mean over
evaluation episodes. docs/statistics.md says what is computed, and how often the intervals hold the truth.
"""

from core.statistics.comparisons import Comparison, compare, compare_all, holm
from core.statistics.estimates import METHODS, Estimate, interquartile_mean, mean, mean_interval
from core.statistics.protocol import Check, Facts, protocol, protocol_lines
from core.statistics.shares import Profile, performance_profile, probability_of_improvement

__all__ = [
    # estimates
    "METHODS",
    "Estimate",
    "interquartile_mean",
    "mean",
    "mean_interval",
    # shares
    "Profile",
    "performance_profile",
    "probability_of_improvement",
    # comparisons
    "Comparison",
    "compare",
    "compare_all",
    "holm",
    # protocol
    "Check",
    "Facts",
    "protocol",
    "protocol_lines",
]
