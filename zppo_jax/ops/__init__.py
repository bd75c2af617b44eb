"""Sequence operators written as pure functions: the gated delta rule and the causal depthwise convolution."""
