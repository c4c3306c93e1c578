"""From a request to tokens and back to text: chat template, sampling, grammar, thinking, stop strings, loop guard."""
