import hypothesis

# Models and torch warm up unevenly: a deadline would measure the machine. Derandomised, so that a failure
# seen once is seen again.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("suite")
