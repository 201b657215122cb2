"""The ids that every vocabulary begins with, as the networks need to know them."""

PAD_ID, EOS_ID, UNK_ID, BOS_ID = 0, 1, 2, 3
