"""Estimates the memory, time and cost of a run before it starts."""

from vidgen.plan.planner import TrainingPlan, plan

__all__ = ["plan", "TrainingPlan"]
