"""What recipes share: settings, start, fits, record, card."""

from __future__ import annotations
