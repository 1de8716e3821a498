"""The student: tokenizer, embedding start, BiLSTM, losses and the training loop; the teacher is
never loaded here.
"""
