from flask import Flask

from jobrunner import JobRunner

app = Flask(__name__)
jobs = JobRunner(app)

@jobs.task(max_attempts=3)
def welcome(user_id: int) -> str:
    return f"Welcome, user {user_id}!"

@app.post("/signup/<int:user_id>")
def signup(user_id: int):
    return {"job": welcome.enqueue(user_id).id}
