"""Judging: questions, generated answers, scores, statistics, and the gate that releases a specialist or not."""
