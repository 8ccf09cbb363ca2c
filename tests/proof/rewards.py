"""What pays in the runs of these tests: something that differs from answer to answer."""


def score(prompt: str, response: str) -> float:
    words = response.split()
    return 0.3 * len(set(words) - set(prompt.split())) - 0.2 * sum(word.startswith("word") for word in words)
