"""The one thing that pyproject.toml cannot say: recipes/ lies at the top of the project and is installed inside the package."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """A wheel gets recipes/*.yaml as tinyseek/recipes/; an editable install finds them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "tinyseek/recipes"
            self.mkpath(str(target))
            for recipe in Path("recipes").glob("*.yaml"):
                self.copy_file(str(recipe), str(target / recipe.name))


setup(cmdclass={"build_py": BuildWithRecipes})
