"""innerloop: finds and shows the learning algorithm running inside a transformer's forward pass.

    import innerloop as il

    task = il.LinearRegression()
    run = il.obtain_run(il.published(seeds=(0,)), "results/runs")
    descent = il.GradientDescent(il.optimal_learning_rate(task))
    samples = il.LinearRegression().samples(il.root_key(7), 10_000)
    print(il.align(run.transformer(0), descent, samples).cosine)

The public interface is listed in ``__init__.pyi``; each name is imported when it is first used, so that importing the
package is quick.
Rooms, from data to report: tasks, tokens, models, algorithms, constructions, exact, kernels, training, store, runs,
analysis, claims, plots, experiments, report, cli.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
