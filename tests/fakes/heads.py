"""Heads and encoders that are small, or read letters only."""

import numpy as np

from coe.router.domains import DOMAINS
from coe.router.encoder import DIMENSIONS, OFFICIAL_SHA256
from coe.router.features import N_BUCKETS
from coe.router.head import Head, Hidden, Linear

SAILING = (
    "How do I tack a small dinghy in light wind?",
    "When should I reef the mainsail on a cruising yacht?",
    "What is the difference between a ketch and a yawl?",
    "Which knot do sailors use to fasten a jib sheet to the clew?",
    "How do I heave to in a storm at sea?",
    "What does it mean to sail close-hauled?",
    "How is a spinnaker set and taken down?",
    "How do I anchor a sailing boat overnight in a bay?",
    "Why does my sail flap when I steer too close to the wind?",
    "Do I have to give way to a yacht on starboard tack?",
)


def likeliest(head, text):
    found = head.probabilities(head.vector(text))
    return head.labels[int(found.argmax())]


class Letters:
    """An encoder that counts letters: it needs no weights and tells texts apart a little."""

    def __init__(self):
        self.n_texts = 0

    weights = OFFICIAL_SHA256

    def load(self):
        pass

    def read(self, text):
        return text

    def encode(self, texts):
        self.n_texts += len(texts)
        rows = np.zeros((len(texts), DIMENSIONS), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for letter in text:
                row[ord(letter) % DIMENSIONS] += 1
            row /= max(float(np.linalg.norm(row)), 1e-9)
        return rows


EMBEDDING = np.full(DIMENSIONS, DIMENSIONS**-0.5, np.float32)


def hidden_head(n_units=6):
    draw = np.random.default_rng(0)
    n = len(DOMAINS)
    outward = draw.standard_normal((n_units, n)).astype(np.float32)
    hidden = Hidden(
        inward=draw.standard_normal((DIMENSIONS, n_units)).astype(np.float32),
        inward_bias=np.ones(n_units, np.float32),
        outward=outward - outward.mean(axis=1, keepdims=True),
    )
    nothing, bias = np.zeros((N_BUCKETS, n), np.float32), np.zeros(n, np.float32)
    joint = Linear(nothing, np.zeros((DIMENSIONS, n), np.float32), bias, 1.0, hidden)
    return Head(DOMAINS, np.ones(N_BUCKETS, np.float32), Linear(nothing, None, bias, 1.0), joint, {})
