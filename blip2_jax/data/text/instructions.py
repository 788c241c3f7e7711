"""Instruction templates of InstructBLIP (Dai et al. 2023, appendix).

They are written from memory and not compared with the paper.
"""

from __future__ import annotations

# Before a short caption.
CAPTION_INSTRUCTIONS = (
    "A short image caption:",
    "A short image description:",
    "A photo of",
    "An image that shows",
    "Write a short description for the image.",
    "Write a description for the photo.",
    "Provide a description of what is presented in the photo.",
    "Briefly describe the content of the image.",
    "Can you briefly explain what you see in the image?",
    "Could you use a few words to describe what you perceive in the photo?",
    "Please provide a short depiction of the picture.",
    "Using language, provide a short account of the image.",
    "Use a few words to illustrate what is happening in the picture.",
)
# Around a question, before a short answer.
QUESTION_INSTRUCTIONS = (
    "{}",
    "Question: {}",
    "{} A short answer to the question is",
    "Q: {} A:",
    "Question: {} Short answer:",
    "Given the image, answer the following question with no more than three words. {}",
    "Based on the image, respond to this question with a short answer: {}. Answer:",
    "Use the provided image to answer the question: {} Provide your answer as short as "
    "possible:",
    'What is the answer to the following question? "{}"',
    'The question "{}" can be answered using the image. A short answer is',
)
# For evaluation without training on the data set.
CAPTION_EVALUATION = "A short image description:"
QUESTION_EVALUATION = "Question: {} Short answer:"
