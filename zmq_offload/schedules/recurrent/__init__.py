"""LSTM, GRU and RNN: one loop over time, with weights that stay packed."""
