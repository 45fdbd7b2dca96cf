"""Losses over huge label sets: functions of scores, functions of tables, and sentence-transformers losses."""

from __future__ import annotations

from hf_xmc.losses.decoupled_softmax import DecoupledSoftmaxLoss

__all__ = ["DecoupledSoftmaxLoss"]
