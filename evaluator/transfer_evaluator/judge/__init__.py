"""The suite `llm-eval`: a model answers open questions, and one or two judges give each answer five scores from 0 to 3.

questions.py    question sets, from files or the hub
exam.py         the open-ended questions of GAOKAO-Bench
prompt.py       what a judge is asked; the answer stands in it as data
parse.py        what it may reply
client.py       asks an OpenAI-compatible endpoint: pace, retries
spending.py     and no more than may be spent
store.py        keeps each reply, so that nothing is asked twice
seats.py        the judges of a stage
panel.py        puts every answer before every judge
agreement.py    how far the judges, and the repeats of one, agree
suite.py        all of it as a suite of the stage `evaluation`
"""
