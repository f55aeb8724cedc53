"""Safety: how executed costs compare with a budget."""

from safe.metrics import CostSummary, summarise_costs

__all__ = ["CostSummary", "summarise_costs"]
